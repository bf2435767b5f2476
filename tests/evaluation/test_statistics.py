"""Bootstrap intervals and Holm's correction against scipy, against simulation, and against a worked example."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from gmd_ray.evaluation.statistics import LEVEL, MIN_IMAGES, RESAMPLES, SEED, holm, mean_interval, wilson


def interval(values: np.ndarray) -> tuple[float, float, float]:
    found = mean_interval(list(values))
    assert found is not None
    return found


@pytest.mark.parametrize("n", [MIN_IMAGES, 10, 40, 980])
@pytest.mark.parametrize("power", [1, 3])
def test_the_interval_is_scipys_at_the_level_widened_for_few_images(n: int, power: int) -> None:
    values = np.random.default_rng(n).normal(0.3, 1, n) ** power
    widened = 1 - 2 * stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf((1 - LEVEL) / 2, n - 1))
    found = stats.bootstrap(
        (values,), np.mean, method="BCa", confidence_level=widened, n_resamples=RESAMPLES,
        rng=np.random.default_rng(SEED), batch=100,
    )  # fmt: skip
    low, high, _ = interval(values)
    assert (low, high) == pytest.approx(tuple(found.confidence_interval), abs=1e-12)
    assert interval(values) == interval(values), "the same table every time"


@pytest.mark.parametrize(
    ("draw", "mean", "n", "covers"),
    [
        (lambda rng, n: rng.normal(0, 1, n), 0.0, 10, (0.92, 0.98)),
        (lambda rng, n: rng.normal(0, 1, n), 0.0, 40, (0.92, 0.98)),
        (lambda rng, n: rng.exponential(1, n), 1.0, 20, (0.89, 0.97)),
        (lambda rng, n: rng.exponential(1, n), 1.0, 100, (0.91, 0.98)),
    ],
)
def test_intervals_hold_the_true_mean_as_often_as_they_say(
    draw: object, mean: float, n: int, covers: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """400 experiments; 0.92 to 0.98 is 0.95 give or take three of their own standard errors."""
    monkeypatch.setattr("gmd_ray.evaluation.statistics.RESAMPLES", 999)
    rng = np.random.default_rng(n)
    found = [interval(draw(rng, n)) for _ in range(400)]  # type: ignore[operator]
    share = np.mean([low <= mean <= high for low, high, _ in found])
    assert covers[0] <= share <= covers[1]


def test_the_p_value_is_the_interval_read_backwards() -> None:
    """It is below 0.05 exactly where the interval leaves zero out, and near that of Student's test on normal values."""
    rng = np.random.default_rng(5)
    for shift in np.linspace(-0.6, 0.6, 25):
        values = rng.normal(shift, 1, 30)
        low, high, p = interval(values)
        assert (p < 0.05) == (low > 0 or high < 0)
        assert p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.05)


def test_p_values_are_uniform_where_there_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmd_ray.evaluation.statistics.RESAMPLES", 999)
    rng = np.random.default_rng(6)
    found = [interval(rng.normal(0, 1, 12))[2] for _ in range(400)]
    assert stats.kstest(found, "uniform").pvalue > 0.001


@pytest.mark.parametrize(
    "values", [[], [1.0] * (MIN_IMAGES - 1), [1.0, 2, 3, 4, 5, math.nan], [1.0, 2, 3, 4, 5, math.inf]]
)
def test_too_few_or_infinite_values_have_no_interval(values: list[float]) -> None:
    assert mean_interval(values) is None


def test_values_without_spread() -> None:
    assert mean_interval([0.5] * 8) == (0.5, 0.5, 0.0)
    assert mean_interval([0.0] * 8) == (0.0, 0.0, 1.0)


def test_holm_on_a_worked_example() -> None:
    """0.01 x 4, then 0.013 x 3 raised to 0.04 before it, 0.03 x 2, and 0.04 raised to 0.06 before it."""
    assert holm([0.03, 0.01, 0.04, 0.013]) == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_rule_rejects() -> None:
    """Holm's rule itself: from the least, reject while p <= alpha / (m - rank), and stop at the first that is not."""
    rng = np.random.default_rng(1)
    for m, alpha in itertools.product((2, 5, 20), (0.01, 0.05, 0.2)):
        values = list(rng.beta(0.3, 3, m))
        rejected: set[int] = set()
        for rank, i in enumerate(sorted(range(m), key=values.__getitem__)):
            if values[i] > alpha / (m - rank):
                break
            rejected.add(i)
        assert {i for i, p in enumerate(holm(values)) if p <= alpha} == rejected


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [
        # Newcombe, Interval estimation for the single proportion (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_has_the_published_values(successes: int, count: int, low: float, high: float) -> None:
    assert wilson(successes, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "count"), [(7, 10), (0, 3), (3, 3), (500, 999)])
def test_wilson_is_scipys(successes: int, count: int) -> None:
    theirs = stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert wilson(successes, count) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_a_large_gain_of_few_images_outlives_many_comparisons() -> None:
    gains = 10 + np.random.default_rng(3).normal(size=10)
    low, _, p = interval(gains)
    assert low > 8
    assert p <= stats.ttest_1samp(gains, 0).pvalue * (1 + 1e-9)
    assert holm([p, *[1.0] * 23])[0] < 0.05


def test_ten_values_without_a_difference_seldom_show_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 0.05, and at the level that Holm's correction asks of the smallest of 24 p-values."""
    monkeypatch.setattr("gmd_ray.evaluation.statistics.RESAMPLES", 999)
    rng = np.random.default_rng(7)
    found = np.array([interval(rng.normal(size=10))[2] for _ in range(600)])
    assert 0.03 < (found < 0.05).mean() < 0.1
    assert (found < 0.05 / 24).mean() < 0.015

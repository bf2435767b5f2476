from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from gmd_ray.evaluation.statistics import LEVEL, wilson
from gmd_ray.study.statistics import (
    MIN_RATERS,
    agreement_with_others,
    krippendorff_alpha,
    ties_as_half,
    without_ties,
)


def test_win_rates_by_hand() -> None:
    tallies = [(3, 1, 0), (1, 2, 1)]  # 4 wins, 3 ties, 1 loss
    excluded, half = without_ties(tallies), ties_as_half(tallies)
    assert excluded is not None
    assert half is not None
    assert excluded.rate == 4 / 5
    assert half.rate == 5.5 / 8
    assert excluded.wilson == wilson(4, 5)
    assert (half.clustered, half.p) == (excluded.clustered, excluded.p) == (None, None), "two raters are too few"


@pytest.mark.parametrize("raters", [2, 3, 5])
def test_few_raters_get_no_interval_over_raters_however_much_they_agree(raters: int) -> None:
    """With five who agree, a sign test has a two-sided p of 2 / 32, so that nothing could be seen."""
    found = ties_as_half([(6, 0, 4)] * raters)
    assert found is not None
    assert (found.rate, found.wilson) == (0.6, wilson(6 * raters, 10 * raters))
    assert (found.clustered, found.p) == (None, None)
    enough = ties_as_half([(6, 0, 4)] * MIN_RATERS)
    assert enough is not None
    assert enough.clustered is not None


@pytest.mark.parametrize("raters", [6, 7, 10, 40])
def test_no_p_value_is_below_that_of_raters_who_all_agree(raters: int) -> None:
    """Equal raters have no spread to resample: a sign test says what their number is worth."""
    found = ties_as_half([(1, 0, 0)] * raters)
    assert found is not None
    assert found.p == pytest.approx(max(stats.binomtest(raters, raters).pvalue, 2e-4))


def test_raters_with_ties_alone_are_no_raters_of_a_rate_without_ties() -> None:
    tallies = [(6, 0, 4)] * (MIN_RATERS - 1) + [(0, 10, 0)]
    excluded, half = without_ties(tallies), ties_as_half(tallies)
    assert excluded is not None
    assert half is not None
    assert excluded.clustered is None
    assert half.clustered is not None


@pytest.mark.parametrize(("raters", "answers"), [(6, 10), (8, 10), (20, 10)])
def test_a_preference_that_nobody_has_is_seldom_seen(raters: int, answers: int) -> None:
    """Raters with tastes of their own, even on the whole: at a level of 5 % with a margin of 3 standard errors."""
    rng, seen, runs = np.random.default_rng(raters), 0, 400
    for run in range(runs):
        wins = rng.binomial(answers, rng.beta(4, 4, raters))
        found = ties_as_half([(int(w), 0, answers - int(w)) for w in wins], seed=run)
        assert found is not None
        assert found.clustered is not None
        assert found.p is not None
        low, high = found.clustered
        assert (found.p < 1 - LEVEL) == (not low <= 0.5 <= high), "the interval and the p-value say the same"
        seen += found.p < 1 - LEVEL
    assert seen / runs <= 0.05 + 0.033


def test_what_has_no_answers_has_no_rate() -> None:
    assert without_ties([(0, 3, 0)]) is None
    assert ties_as_half([]) is None
    alone = ties_as_half([(3, 1, 1)])
    assert alone is not None
    assert alone.clustered is None


def test_the_clustered_interval_is_scipys_bootstrap_of_raters_widened_for_their_number() -> None:
    rng = np.random.default_rng(3)
    wins = rng.binomial(12, rng.beta(4, 3, 30))
    tallies = [(int(w), 2, 12 - int(w)) for w in wins]
    ours = ties_as_half(tallies)
    assert ours is not None
    assert ours.clustered is not None
    theirs = stats.bootstrap(
        (np.array([(w + 1) / 14 for w in wins]),), np.mean, method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    wider = math.sqrt(30 / 29) * stats.t.ppf(0.975, 29) / stats.norm.ppf(0.975)
    expected = [ours.rate + wider * (end - ours.rate) for end in (theirs.low, theirs.high)]
    assert ours.clustered == pytest.approx(expected, abs=0.006)
    assert ties_as_half(tallies) == ours  # the same seed, the same interval


def test_the_p_value_is_that_of_the_resampled_raters() -> None:
    """15 of 20 raters for the first: a sample of 20 has at most 10 of them as often as a binomial variable.

    Widened by 1.096, a share of up to 0.522 lies at one half or beyond it: still at most 10 of 20.
    """
    found = ties_as_half([(1, 0, 0)] * 15 + [(0, 0, 1)] * 5)
    assert found is not None
    assert found.p == pytest.approx(2 * stats.binom.cdf(10, 20, 0.75), abs=0.006)
    turned = ties_as_half([(0, 0, 1)] * 15 + [(1, 0, 0)] * 5)
    assert turned is not None
    assert turned.p == pytest.approx(found.p, abs=0.006)
    even = ties_as_half([(1, 0, 0), (0, 0, 1)] * 3)
    assert even is not None
    assert even.p == 1.0


def test_the_clustered_interval_covers_where_raters_differ_and_wilsons_does_not() -> None:
    """Raters whose own preference varies: 95 % hold over raters, and far less where answers count as independent."""
    rng = np.random.default_rng(11)
    truth, covered, naive, runs = 0.6, 0, 0, 150
    for run in range(runs):
        preference = rng.beta(6 * truth, 6 * (1 - truth), 40)
        tallies = [(int(w), 0, 20 - int(w)) for w in rng.binomial(20, preference)]
        found = without_ties(tallies, seed=run)
        assert found is not None
        assert found.clustered is not None
        covered += found.clustered[0] <= truth <= found.clustered[1]
        naive += found.wilson[0] <= truth <= found.wilson[1]
    assert covered / runs > 0.88
    assert naive / runs < 0.8


def test_alpha_has_the_published_value() -> None:
    """Krippendorff (2011), section C: four observers, twelve units, missing values; nominal alpha is 0.743."""
    table = ("1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 .")
    units = [
        [value for value in column if value != "."] for column in zip(*(row.split() for row in table), strict=True)
    ]
    alpha = krippendorff_alpha(units)
    assert alpha is not None
    assert alpha == pytest.approx(0.743, abs=5e-4)


def test_alpha_of_full_agreement_of_chance_and_of_nothing() -> None:
    rng = np.random.default_rng(0)
    assert krippendorff_alpha([["left", "left"], ["right", "right", "right"]]) == 1
    chance = krippendorff_alpha([list(rng.choice(["left", "tie", "right"], 5)) for _ in range(4000)])
    assert chance is not None
    assert math.isclose(chance, 0, abs_tol=0.02)
    assert krippendorff_alpha([["left"], ["right"]]) is None
    assert krippendorff_alpha([["left", "left"]]) is None


def test_agreement_counts_pairs_on_which_the_others_agree() -> None:
    choices = {
        "a": {"1": "left", "2": "left", "3": "tie"},
        "b": {"1": "left", "2": "right", "3": "left"},
        "c": {"1": "right", "2": "right"},
    }
    # Pair 1: the others of a are split, as are those of b; those of c agree on left. Pair 2: those of a agree on right.
    assert agreement_with_others(choices) == {"a": (0, 2), "b": (0, 1), "c": (0, 1)}
    assert agreement_with_others({"a": {"1": "left"}, "b": {"1": "left"}}) == {"a": (1, 1), "b": (1, 1)}

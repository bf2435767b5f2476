"""Figures of a calibration against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gmd_ray.quality.calibration.ranking import admitted, best_threshold, rank


def draw(seed: int, shift: float, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    better, worse = rng.normal(shift, 1, n), rng.normal(0, 1, n)
    return np.round(better, 1).astype(np.float32), np.round(worse, 1).astype(np.float32)  # with ties


@pytest.mark.parametrize("higher", [True, False])
def test_the_share_is_counted_over_all_pairs(higher: bool) -> None:
    better, worse = draw(0, 1.0)
    points = [0.5 if a == b else float((a > b) == higher) for a in better for b in worse]
    found = rank(better, worse, higher)
    assert found.share == pytest.approx(np.mean(points))
    own = [0.5 if a == b else float((a > b) == higher) for a, b in zip(better, worse, strict=True)]
    assert found.matched == pytest.approx(np.mean(own))


@pytest.mark.parametrize(("shift", "verdict"), [(1.5, "right"), (0.0, "unclear"), (-1.5, "backwards")])
def test_the_verdict(shift: float, verdict: str) -> None:
    better, worse = draw(1, shift)
    assert rank(better, worse, True).verdict == verdict
    assert rank(-better, -worse, False).verdict == verdict


def test_the_margin_holds_chance_in_nineteen_of_twenty_draws() -> None:
    rng = np.random.default_rng(2)
    draws = [rank(rng.normal(size=32), rng.normal(size=32), True).verdict for _ in range(600)]
    assert 0.93 < draws.count("unclear") / len(draws) < 0.98
    assert rank(np.ones(32), np.ones(32), True).margin == pytest.approx(2 * math.sqrt(65 / (12 * 32 * 32)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("higher", [True, False])
def test_no_other_threshold_parts_better(seed: int, higher: bool) -> None:
    better, worse = draw(seed, 1.0)
    better, worse = (better, worse) if higher else (-better, -worse)

    def index(threshold: float) -> float:
        return admitted(better, threshold, higher) - admitted(worse, threshold, higher)

    found = index(best_threshold(better, worse, higher))
    everywhere = np.linspace(-6, 6, 2401)
    assert found == pytest.approx(max(index(float(value)) for value in everywhere))


def test_the_threshold_lies_in_the_widest_gap_and_is_short() -> None:
    better, worse = np.array([7.0, 8.123, 9.0]), np.array([1.0, 2.0, 3.123])
    assert best_threshold(better, worse, True) == 5.06
    assert best_threshold(worse, better, False) == 5.06
    close = best_threshold(np.array([5.00002]), np.array([5.00001]), True)
    assert np.float32(5.00001) < np.float32(close) < np.float32(5.00002)


def test_what_a_threshold_admits() -> None:
    scores = np.array([4.1, 4.2, 4.3], np.float32)
    assert admitted(scores, 4.2, True) == pytest.approx(2 / 3)
    assert admitted(scores, 4.2, False) == pytest.approx(2 / 3)

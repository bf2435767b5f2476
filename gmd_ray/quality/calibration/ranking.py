"""Figures of two groups of scores whose order is known: how well the score ranks them, and where it parts them best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["right", "unclear", "backwards"]


@dataclass(frozen=True)
class Ranking:
    """The order in which a score puts two groups, one of which is better by construction."""

    share: float
    """Probability that a better image scores better than a worse one, over all pairs of the two groups; ties count
    half. It is the area under the ROC curve, and 0.5 is chance."""
    matched: float
    """Share of the images that score better than their own worse version."""
    margin: float
    """Distance from 0.5 within which `share` lies in 95 % of all draws if the score cannot tell the groups apart: twice
    its deviation after Mann and Whitney (1947)."""

    @property
    def verdict(self) -> Verdict:
        """`right` or `backwards` where `share` is further from chance than `margin`, else `unclear`."""
        if abs(self.share - 0.5) <= self.margin:
            return "unclear"
        return "right" if self.share > 0.5 else "backwards"


def rank(better: np.ndarray, worse: np.ndarray, higher_is_better: bool) -> Ranking:
    """Compare two groups of scores.

    Args:
        better, worse: (N,) scores of the same images in the same order; N is at least 1.
    """
    assert len(better) == len(worse) > 0
    up, down = _upward(better, higher_is_better), _upward(worse, higher_is_better)
    n = len(up)
    return Ranking(
        share=_wins(up[:, None], down[None]),
        matched=_wins(up, down),
        margin=2 * math.sqrt((2 * n + 1) / (12 * n * n)),
    )


def best_threshold(better: np.ndarray, worse: np.ndarray, higher_is_better: bool) -> float:
    """Find the threshold at which the shares of better images accepted and of worse images rejected sum to most.

    It is the point of Youden's index (1950), half way between two neighbouring scores; of several such points, the one
    in the widest gap. The value is rounded to as few digits as that gap allows.

    Args:
        better, worse: (N,) and (M,) scores; not all of them are equal.
    """
    values = np.unique(np.concatenate([better, worse]).astype(np.float32))
    assert len(values) > 1, "equal scores have no threshold between them"
    gaps = list(zip(values[:-1].tolist(), values[1:].tolist(), strict=True))

    def merit(gap: tuple[float, float]) -> tuple[float, float]:
        threshold = _between(*gap)
        index = admitted(better, threshold, higher_is_better) - admitted(worse, threshold, higher_is_better)
        return round(index, 9), gap[1] - gap[0]  # rounded, since equal indices may differ in their last bit

    return _between(*max(gaps, key=merit))


def admitted(scores: np.ndarray, threshold: float, higher_is_better: bool) -> float:
    """Share of the scores that a threshold accepts, compared in float32 as the pair store does."""
    scores, limit = scores.astype(np.float32), np.float32(threshold)
    return float(np.mean(scores >= limit if higher_is_better else scores <= limit))


def _between(low: float, high: float) -> float:
    """A number between two float32 values, with as few digits as possible; it equals neither, even in float32."""
    middle = (low + high) / 2
    for digits in range(3, 9):
        value = float(f"{middle:.{digits}g}")
        if np.float32(low) < np.float32(value) < np.float32(high):
            return value
    return middle


def _upward(scores: np.ndarray, higher_is_better: bool) -> np.ndarray:
    return scores if higher_is_better else -scores


def _wins(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean(a > b) + np.mean(a == b) / 2)

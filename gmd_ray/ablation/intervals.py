"""95 % intervals over images and training seeds at once, by a bootstrap that draws both anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000


@dataclass(frozen=True)
class TwoWayInterval:
    """Mean of values over seeds and images, with a 95 % interval."""

    mean: float
    low: float
    high: float
    p: float
    """Two-sided p value of a mean of zero: twice the share of the resampled means beyond zero, at most 1."""
    seeds: int
    images: int
    groups: int
    """Groups of images that are drawn together; the number of images where each stands alone."""


def two_way_interval(
    values: np.ndarray, groups: Sequence[str] | None = None, *, seed: int = 0, resamples: int = RESAMPLES
) -> TwoWayInterval:
    """Bootstrap the mean of values that vary over training seeds and over images (Owen 2007, the pigeonhole bootstrap).

    Each resample draws seeds with replacement and, independently, images (or whole groups of them), and takes the mean
    of the values in the drawn rows and columns. With few seeds or groups a resample varies too little: a mean of n
    draws from n values has (n - 1) / n of the variance that it should have. The deviations of the seeds' means and of
    the images' means from the grand mean are therefore widened by the square root of n / (n - 1). The interval is the
    central 95 % of the resampled means. With three seeds it still covers less than it says where the seeds, and not the
    images, make most of the variation.

    Args:
        values: (seeds, images), finite.
        groups: name of the group of each image; None takes each image for itself.
        seed: seed of the draws.
        resamples: number of resampled means.
    """
    values = np.asarray(values, np.float64)
    seeds, images = values.shape
    names, member = np.unique(np.arange(images) if groups is None else np.asarray(groups), return_inverse=True)
    sums = np.stack([np.bincount(member, row, len(names)) for row in values])  # (seeds, groups)
    sizes = np.bincount(member, minlength=len(names)).astype(np.float64)
    mean = float(values.mean())
    rng = np.random.default_rng(seed)
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples).astype(np.float64)
    columns = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), resamples).astype(np.float64)
    weights = columns @ sizes  # images in a resample; groups may differ in size
    of_columns = (columns @ sums.mean(0)) / weights - mean
    of_rows = (rows / seeds) @ values.mean(1) - mean
    both = np.einsum("rs,sg,rg->r", rows / seeds, sums, columns) / weights - mean
    rest = both - of_columns - of_rows
    widened = [_widening(seeds) * of_rows, _widening(len(names)) * of_columns, rest]
    means = mean + np.sum(widened, axis=0)
    low, high = np.quantile(means, [0.025, 0.975])
    beyond = min(float((means <= 0).mean()), float((means >= 0).mean()))
    return TwoWayInterval(
        mean, float(low), float(high), min(1.0, 2 * max(beyond, 0.5 / resamples)), seeds, images, len(names)
    )


def _widening(n: int) -> float:
    return float(np.sqrt(n / (n - 1))) if n > 1 else 1.0

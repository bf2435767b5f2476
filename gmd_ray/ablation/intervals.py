"""95 % intervals over images and training seeds at once, by a bootstrap that draws both anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gmd_ray.evaluation.statistics import LEVEL, MIN_IMAGES, RESAMPLES, SEED, widening


def two_way_interval(
    values: np.ndarray, groups: Sequence[str] | None = None, *, resamples: int = RESAMPLES
) -> tuple[float, float, float] | None:
    """Interval at `LEVEL` of the mean of values that vary over training seeds and over images; two-sided p of zero.

    Each resample draws seeds with replacement and, independently, images, or whole groups of them, and takes the mean
    of the values in the drawn rows and columns (the pigeonhole bootstrap, Owen 2007). A mean of n draws from n values
    has only (n - 1) / n of the variance that it should have, and the quantiles of the normal distribution where those
    of Student's t are due. The deviations of the seeds' means and of the images' means from the grand mean are
    therefore each widened by sqrt(n / (n - 1)) and by the ratio of the two quantiles, as `mean_interval` does for
    images alone. The interval is the central part of the resampled means. Where three seeds, and not the images, make
    most of the variation, it is wide, as three values deserve.

    Args:
        values: (seeds, images). The draws are seeded, so that the same values always give the same interval.
        groups: name of the group of each image, such as the photograph that a crop comes from; None takes each image
            for itself.
        resamples: number of resampled means.

    Returns:
        (low, high, p); None for fewer than `MIN_IMAGES` groups, or for a value that is not finite.
    """
    values = np.asarray(values, np.float64)
    seeds, images = values.shape
    names, member = np.unique(np.arange(images) if groups is None else np.asarray(groups), return_inverse=True)
    if len(names) < MIN_IMAGES or not np.isfinite(values).all():
        return None
    sums = np.stack([np.bincount(member, row, len(names)) for row in values])  # (seeds, groups)
    sizes = np.bincount(member, minlength=len(names)).astype(np.float64)
    mean = float(values.mean())
    rng = np.random.default_rng(SEED)
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    columns = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), resamples).astype(np.float64)
    drawn = columns @ sizes  # images in a resample: groups may differ in size
    of_images = (columns @ sums.mean(0)) / drawn - mean
    of_seeds = rows @ values.mean(1) - mean
    rest = np.einsum("rs,sg,rg->r", rows, sums, columns, optimize=True) / drawn - mean - of_images - of_seeds
    means = mean + widening(seeds) * of_seeds + widening(len(names)) * of_images + rest
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    beyond = min(float((means <= 0).mean()), float((means >= 0).mean()))
    return float(low), float(high), min(1.0, 2 * max(beyond, 0.5 / resamples))

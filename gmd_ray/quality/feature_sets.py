"""Sets of image features that grow and merge in bounded memory, and the Frechet distance between two of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gmd_ray.errors import DataError


class FeatureSet:
    """The features of a set of images, (D,) each.

    Up to D images are kept as they are. More are reduced to their count, sum and sum of outer products in float64,
    which can be added in any order, so that the set takes the memory of one (D, D) matrix however many images it has,
    and sets of several workers merge into the set of all.
    """

    def __init__(self) -> None:
        self.count = 0
        self._kept: list[np.ndarray] = []
        self._total: np.ndarray | None = None
        self._outer: np.ndarray | None = None

    def add(self, features: np.ndarray) -> None:
        """Add images, (N, D) or one (D,)."""
        rows = np.atleast_2d(np.asarray(features, np.float64))
        self.count += len(rows)
        self._kept.extend(rows)
        if self._kept and len(self._kept) > len(self._kept[0]):
            self.reduce()

    def merge(self, other: FeatureSet) -> None:
        """Add the images of another set, which stays as it is."""
        if other._total is not None and other._outer is not None:
            self._add_sums(other._total, other._outer)
        self.count += other.count
        self._kept.extend(other._kept)
        if self._kept and len(self._kept) > len(self._kept[0]):
            self.reduce()

    def reduce(self) -> None:
        """Fold the kept images into the sums."""
        if self._kept:
            rows = np.stack(self._kept)
            self._add_sums(rows.sum(axis=0), rows.T @ rows)
            self._kept = []

    def _add_sums(self, total: np.ndarray, outer: np.ndarray) -> None:
        if self._total is None or self._outer is None:
            self._total, self._outer = total.copy(), outer.copy()
        else:
            self._total += total
            self._outer += outer

    def spread(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean (D,) and a matrix A (R, D) with A'A equal to the covariance (D, D), R at most D or the count."""
        if self._total is None:
            rows = np.stack(self._kept)
            mean = rows.mean(axis=0)
            return mean, (rows - mean) / np.sqrt(len(rows) - 1)
        self.reduce()
        assert self._outer is not None
        mean = self._total / self.count
        covariance = (self._outer - np.outer(self._total, mean)) / (self.count - 1)
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        # Directions without variance come out as rounding errors, whose square roots would be far larger than they.
        real = values > values[-1] * len(values) * np.finfo(np.float64).eps
        return mean, (vectors[:, real] * np.sqrt(values[real])).T


def feature_set(vectors: Sequence[np.ndarray] | np.ndarray) -> FeatureSet:
    """The set of these features, (N, D)."""
    found = FeatureSet()
    if len(vectors):
        found.add(np.stack(list(vectors)))
    return found


def frechet_distance(ours: FeatureSet, theirs: FeatureSet) -> float:
    """Compute the squared Frechet distance of the Gaussians fitted to two sets of features.

    It is |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), in float64 (Heusel et al. 2017, equation 6).

    Raises:
        DataError: a set of fewer than two images, which has no covariance.
    """
    if min(ours.count, theirs.count) < 2:
        raise DataError("it compares sets of two images or more")
    # With S = A'A the eigenvalues of S1 S2 are the squared singular values of A1 A2', and tr((S1 S2)^(1/2)) is the sum
    # of the singular values. The usual square root of a (D, D) matrix loses its digits when there are fewer images than
    # features.
    (mean, one), (other_mean, two) = ours.spread(), theirs.spread()
    traces = float((one**2).sum() + (two**2).sum())
    cross = float(np.linalg.svd(one @ two.T, compute_uv=False).sum())
    return float(((mean - other_mean) ** 2).sum()) + traces - 2 * cross

"""The Frechet distance of sets of features, whole, reduced and merged, against its definition with scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from gmd_ray.errors import DataError
from gmd_ray.quality import compare_sets
from gmd_ray.quality.feature_sets import FeatureSet, feature_set, frechet_distance


def by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """Heusel et al. 2017, equation 6, with scipy's matrix square root."""
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(one @ two).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + two - 2 * root))


def merged(features: np.ndarray, parts: int) -> FeatureSet:
    """The set of all images, from the sets of several workers, each reduced to its sums."""
    whole = FeatureSet()
    for part in np.array_split(features, parts):
        worker = feature_set(part)
        worker.reduce()
        whole.merge(worker)
    return whole


@pytest.mark.parametrize("sizes", [(200, 150), (40, 300), (12, 14)])
def test_the_arithmetic_is_that_of_the_definition(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(16, 16))
    a, b = rng.normal(size=(sizes[0], 16)) @ mix, rng.normal(0.3, 1.5, size=(sizes[1], 16))
    found = frechet_distance(feature_set(a), feature_set(b))
    if min(sizes) > 16:  # scipy's root loses its digits on singular covariances
        assert found == pytest.approx(by_definition(a, b), rel=1e-6)
    assert found == pytest.approx(frechet_distance(feature_set(b), feature_set(a)), rel=1e-9)
    for parts in (1, 3, 5):
        assert frechet_distance(merged(a, parts), merged(b, parts)) == pytest.approx(found, rel=1e-6)
        assert frechet_distance(merged(a, parts), feature_set(b)) == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("images", [60, 400])
def test_features_like_those_of_a_network_keep_six_digits(images: int) -> None:
    """Non-negative, far from zero and unequal in scale, fewer and more images than features; sums against rows."""
    rng = np.random.default_rng(1)
    scales = np.logspace(-3, 0.5, 128)
    a = (np.abs(rng.normal(size=(images, 128))) * scales + 0.4).astype(np.float32)
    b = (np.abs(rng.normal(0.1, 1.1, size=(images, 128))) * scales + 0.41).astype(np.float32)
    spreads = [(x.astype(np.float64) - x.mean(0, dtype=np.float64)) / np.sqrt(images - 1) for x in (a, b)]
    cross = np.linalg.svd(spreads[0] @ spreads[1].T, compute_uv=False).sum()
    gap = a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)
    direct = float((gap**2).sum() + sum((spread**2).sum() for spread in spreads) - 2 * cross)
    assert frechet_distance(feature_set(a), feature_set(b)) == pytest.approx(direct, rel=1e-6)
    assert frechet_distance(merged(a, 7), merged(b, 3)) == pytest.approx(direct, rel=1e-6)


def test_a_set_grows_image_by_image_and_holds_no_more_than_a_matrix() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(50, 8)), rng.normal(1, 1, size=(30, 8))
    grown = FeatureSet()
    for row in a:
        grown.add(row)
    assert grown.count == 50
    assert len(grown._kept) <= 8
    assert frechet_distance(grown, feature_set(b)) == pytest.approx(by_definition(a, b), rel=1e-9)


def test_fewer_images_than_features() -> None:
    """Singular covariances, where a matrix square root loses its digits; two lines have an exact value."""
    t = np.linspace(-1, 1, 5)[:, None]
    one, two = np.zeros((1, 100)), np.zeros((1, 100))
    one[0, 0], two[0, :2] = 3, (1.2, 1.6)
    a, b = t * one, 1 + t * two
    variance = float(t.var(ddof=1))
    # tr(S1) = 9 v, tr(S2) = 4 v, and (S1 S2)^(1/2) has the one eigenvalue v |<one, two>| = 3.6 v.
    expected = 100 + 13 * variance - 2 * 3.6 * variance
    assert frechet_distance(feature_set(a), feature_set(b)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(merged(a, 2), merged(b, 2)) == pytest.approx(expected, rel=1e-6)


def test_a_set_is_at_no_distance_from_itself_and_one_image_is_no_set() -> None:
    a = np.random.default_rng(0).normal(size=(30, 64)).astype(np.float32)
    assert frechet_distance(feature_set(a), feature_set(a[::-1])) == pytest.approx(0, abs=1e-9)
    for few in (FeatureSet(), feature_set(a[:1])):
        with pytest.raises(DataError, match="two images or more"):
            compare_sets("fid", few, feature_set(a))

"""FID's arithmetic against scipy, and the metric with a network small enough to follow by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn

from gmd_ray.errors import DataError
from gmd_ray.quality import MetricUnavailable, compare_sets, load_set_metric
from gmd_ray.quality.frechet import FrechetDistance, frechet_distance


def by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """Heusel et al. 2017, equation 6, with scipy's matrix square root."""
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(one @ two).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + two - 2 * root))


@pytest.mark.parametrize("sizes", [(200, 150), (40, 300)])
def test_the_arithmetic_is_that_of_the_definition(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(16, 16))
    a, b = rng.normal(size=(sizes[0], 16)) @ mix, rng.normal(0.3, 1.5, size=(sizes[1], 16))
    assert frechet_distance(a, b) == pytest.approx(by_definition(a, b), rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_fewer_images_than_features() -> None:
    """Singular covariances, where a matrix square root loses its digits; two lines have an exact value."""
    t = np.linspace(-1, 1, 5)[:, None]
    one, two = np.zeros((1, 100)), np.zeros((1, 100))
    one[0, 0], two[0, :2] = 3, (1.2, 1.6)
    a, b = t * one, 1 + t * two
    variance = float(t.var(ddof=1))
    # tr(S1) = 9 v, tr(S2) = 4 v, and (S1 S2)^(1/2) has the one eigenvalue v |<one, two>| = 3.6 v.
    assert frechet_distance(a, b) == pytest.approx(100 + 13 * variance - 2 * 3.6 * variance, rel=1e-9)


def test_a_set_is_at_no_distance_from_itself_and_one_image_is_no_set() -> None:
    a = np.random.default_rng(0).normal(size=(30, 64)).astype(np.float32)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-9)
    with pytest.raises(DataError, match="two images or more"):
        compare_sets("fid", a[:1], a)


class Means(nn.Module):
    """The mean of each channel: (1, 3, 1, 1)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape == (1, 3, 299, 299)
        return x.mean((2, 3), keepdim=True)


def test_features_see_the_image_at_their_own_size_and_range() -> None:
    metric = FrechetDistance(Means(), "cpu", crop_border=2)
    image = torch.zeros(3, 24, 40)
    image[:, 2:-2, 2:-2] = torch.tensor([0.2, 0.4, 1.0])[:, None, None]
    expected = 2 * np.array([0.2, 0.4, 1.0]) - 1
    np.testing.assert_allclose(metric.features(image), expected, atol=1e-5)


def test_resampling_is_antialiased_and_near_the_edges_clipped() -> None:
    stripes = (torch.arange(1196) % 2).float().expand(3, 8, 1196)
    np.testing.assert_allclose(FrechetDistance(Means(), "cpu").features(stripes), 0, atol=0.01)


def test_without_weights_it_says_what_it_needs(empty_directory: Path, tmp_path: Path) -> None:
    assert load_set_metric("psnr") is None
    place = empty_directory / "pyiqa" / "pt_inception-2015-12-05-6726825d.pth"
    with pytest.raises(MetricUnavailable) as caught:
        load_set_metric("fid")
    assert f"put it at {place}, or set evaluation.weights.fid=FILE" in str(caught.value)
    with pytest.raises(MetricUnavailable, match="no such file"):
        load_set_metric("fid", weights=str(tmp_path / "none.pth"))


def test_features_are_those_of_pytorch_fids_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyiqa's copy of it, built with random weights, is the oracle; its own loader would download them."""
    inception = pytest.importorskip("pyiqa.archs.inception")
    generator = torch.Generator().manual_seed(0)

    def randomize(network: nn.Module, url: str) -> None:
        for value in network.state_dict().values():
            if value.ndim == 4:
                value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
        torch.save(network.state_dict(), tmp_path / "pyiqa" / "pt_inception-2015-12-05-6726825d.pth")

    (tmp_path / "pyiqa").mkdir()
    monkeypatch.setattr(inception, "load_pretrained_network", randomize)
    oracle = inception.InceptionV3([3]).eval()
    images = torch.round(torch.rand(2, 3, 299, 299, generator=generator) * 255) / 255
    with torch.no_grad():
        expected = [oracle(image[None] * 2 - 1)[0].flatten().numpy() for image in images]
    file = tmp_path / "pyiqa" / "pt_inception-2015-12-05-6726825d.pth"
    for given in ({"weights": str(file)}, {"directory": str(tmp_path)}):
        metric = load_set_metric("fid", device="cpu", **given)
        assert metric is not None
        one, two = (metric.features(image) for image in images)
        assert one.shape == (2048,)
        assert np.abs(one - two).max() > 0
        np.testing.assert_allclose(one, expected[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(two, expected[1], rtol=1e-3, atol=1e-4)


def test_weights_of_another_network(tmp_path: Path) -> None:
    pytest.importorskip("pyiqa")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(MetricUnavailable, match=r"other.pth: not the weights of FID's Inception"):
        load_set_metric("fid", weights=str(tmp_path / "other.pth"))

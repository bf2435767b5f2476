"""FID's arithmetic against scipy, and the metric with a network small enough to follow by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gmd_ray.quality import MetricUnavailable, load_set_metric
from gmd_ray.quality.frechet import FrechetDistance


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

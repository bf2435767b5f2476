"""Losses of each crop, against their definitions written out with numpy, and the perceptual term."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gmd_ray.config import StudentConfig
from gmd_ray.errors import ConfigError
from gmd_ray.students import load_student
from gmd_ray.students.losses import LOSSES, Perceptual, crop_losses
from tests.training.toys import write_student


@pytest.mark.parametrize("kind", LOSSES)
def test_definitions(kind: str) -> None:
    rng = np.random.default_rng(0)
    restored, hq = rng.random((2, 3, 3, 5, 7))
    expected = []
    for x, y in zip(restored, hq, strict=True):
        error = (x - y).ravel()
        expected.append(
            {
                "l1": abs(error).mean(),
                "l2": (error**2).mean(),
                "charbonnier": np.sqrt(error**2 + 1e-9).mean(),
                "psnr": 10 * math.log10((error**2).mean() + 1e-8),
            }[kind]
        )
    losses = crop_losses(torch.from_numpy(restored), torch.from_numpy(hq), kind)
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_mean_over_crops_is_the_loss_of_the_batch(kind: str, tmp_path: Path) -> None:
    write_student(tmp_path / "student.pth")
    student = load_student(StudentConfig(path=str(tmp_path / "student.pth"), device="cpu"), kind)
    lq, hq = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    loss, _ = student.training_loss(lq, hq)
    losses, logs = student.training_loss(lq, hq, reduce=False)
    assert losses.shape == (3,)
    assert logs == {}
    torch.testing.assert_close(losses.mean(), loss)
    for i in range(3):
        torch.testing.assert_close(losses[i], student.training_loss(lq[i : i + 1], hq[i : i + 1])[0])


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG19's own layout with random weights; the classifier, which is not needed, left out for its 480 MB."""
    from torchvision.models import vgg19

    with torch.device("meta"):
        layers = vgg19(weights=None).features
    generator = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    state = {
        f"features.{key}": torch.randn(value.shape, generator=generator) * (2 / (value.numel() / len(value))) ** 0.5
        for key, value in layers.state_dict().items()
    }
    torch.save(state, path)
    return path


def test_perceptual_term_is_real_esrgans(vgg_file: Path) -> None:
    from torchvision.models import vgg19

    generator = torch.Generator().manual_seed(1)
    restored, hq = torch.rand(2, 2, 3, 32, 32, generator=generator)
    state = torch.load(vgg_file, weights_only=True)
    with torch.device("meta"):
        layers = vgg19(weights=None).features
    layers.load_state_dict({key.removeprefix("features."): value for key, value in state.items()}, assign=True)
    kept: dict[str, list[torch.Tensor]] = {}
    names = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}
    for images in (restored, hq):
        x = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
            :, None, None
        ]
        block, conv = 1, 0
        for layer in layers:
            x = torch.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
            if isinstance(layer, nn.Conv2d):
                conv += 1
                kept.setdefault(f"conv{block}_{conv}", []).append(x)
            elif isinstance(layer, nn.MaxPool2d):
                block, conv = block + 1, 0
    expected = sum(weight * (kept[n][0] - kept[n][1]).abs().mean((1, 2, 3)) for n, weight in names.items())
    network = Perceptual(vgg_file)
    assert not any(p.requires_grad for p in network.parameters())
    torch.testing.assert_close(network(restored, hq), expected)
    assert network(hq, hq).tolist() == [0, 0]


def test_perceptual_term_is_added_to_the_pixel_loss_and_has_a_gradient(vgg_file: Path, tmp_path: Path) -> None:
    write_student(tmp_path / "student.pth")
    cfg = StudentConfig(path=str(tmp_path / "student.pth"), device="cpu")
    lq, hq = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = load_student(cfg)
    student = load_student(cfg, perceptual=0.5, perceptual_weights=str(vgg_file))
    assert student.module.state_dict().keys() == plain.module.state_dict().keys(), "it is no part of the student"
    loss, _ = student.training_loss(lq, hq)
    with torch.no_grad():
        term = Perceptual(vgg_file)(plain.module(lq), hq).mean()
    torch.testing.assert_close(loss, plain.training_loss(lq, hq)[0] + 0.5 * term)
    before, _ = plain.training_loss(lq, hq)
    before.backward()
    loss.backward()
    pairs = zip(student.module.parameters(), plain.module.parameters(), strict=True)
    assert any(not torch.allclose(p.grad, q.grad) for p, q in pairs if p.grad is not None and q.grad is not None)


def test_perceptual_weights_that_are_none(tmp_path: Path) -> None:
    write_student(tmp_path / "student.pth")
    cfg = StudentConfig(path=str(tmp_path / "student.pth"), device="cpu")
    with pytest.raises(ConfigError, match=r"set training\.perceptual_weights"):
        load_student(cfg, perceptual=1.0)
    with pytest.raises(ConfigError, match="no such file"):
        load_student(cfg, perceptual=1.0, perceptual_weights=str(tmp_path / "none.pth"))
    with pytest.raises(ConfigError, match="not torchvision's vgg19"):
        load_student(cfg, perceptual=1.0, perceptual_weights=str(tmp_path / "student.pth"))

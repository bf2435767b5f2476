"""Restoring with a student equals spandrel's own call, for any size and batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from spandrel import ModelLoader

from gmd_ray.config import StudentConfig
from gmd_ray.students import ModuleStudent, Student, load_student
from gmd_ray.students.common import say_once
from tests.students.networks import NETWORKS, save_network, student_of

BT601 = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_restores_as_spandrel_does_with_and_without_padding(tmp_path, name):
    path = tmp_path / "student.pth"
    save_network(path, name)
    student, descriptor = student_of(path), ModelLoader("cpu").load_from_file(path)
    assert isinstance(student, Student)
    assert student.scale == descriptor.scale
    for height, width in ((64, 64), (37, 50), (9, 20)):
        image = torch.rand(1, 3, height, width)
        seen = (image * BT601).sum(1, keepdim=True) if descriptor.input_channels == 1 else image
        expected = descriptor(seen.clone()).expand(-1, 3, -1, -1)
        if descriptor.output_channels == 1:
            expected = (expected + image - seen).clamp(0, 1)  # another luma, the same Cb and Cr
        torch.testing.assert_close(student.restore(image), expected.clone(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_equals_singles(tmp_path, name):
    path = tmp_path / "student.pth"
    save_network(path, name)
    student, images = student_of(path), torch.rand(3, 3, 24, 40)
    singles = torch.cat([student.restore(image[None]) for image in images])
    torch.testing.assert_close(student.restore(images), singles, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_input_is_left_alone(tmp_path, name):
    """RCAN multiplies its input in place."""
    path = tmp_path / "student.pth"
    save_network(path, name)
    student, image = student_of(path), torch.rand(1, 3, 128, 128)  # a size that none needs to pad
    before = image.clone()
    student.restore(image)
    student.module(image)
    assert torch.equal(image, before)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (5, 3)])
def test_any_size(tmp_path, name, size):
    path = tmp_path / "student.pth"
    save_network(path, name)
    student = student_of(path)
    restored = student.restore(torch.rand(2, 3, *size))
    assert restored.shape == (2, 3, size[0] * student.scale, size[1] * student.scale)
    assert restored.isfinite().all()


def test_restore_clamps_needs_no_gradient_and_leaves_every_training_flag(tmp_path):
    path = tmp_path / "student.pth"
    save_network(path, "dncnn_gray_bn", lambda w: {k: v * 20 if k == "model.0.weight" else v for k, v in w.items()})
    student = student_of(path)
    student.module.train()
    norms = [part for part in student.module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    norms[0].eval()  # as a trainer that freezes some statistics does
    flags = [part.training for part in student.module.modules()]
    statistics = norms[1].running_mean.clone()
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    restored = student.restore(image)
    assert not restored.requires_grad
    assert 0 <= restored.min() <= restored.max() <= 1
    raw = student.module.eval()(image)
    assert raw.min() < 0 or raw.max() > 1  # so there was something to clamp
    student.module.train()
    norms[0].eval()
    assert [part.training for part in student.module.modules()] == flags
    student.restore(image)
    assert [part.training for part in student.module.modules()] == flags
    assert torch.equal(norms[1].running_mean, statistics)


def ycbcr(rgb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Y, Cb and Cr of BT.601, each (B, 1, H, W)."""
    y = (rgb * BT601).sum(1, keepdim=True)
    return y, (rgb[:, 2:] - y) / 1.772, (rgb[:, :1] - y) / 1.402


def test_a_gray_student_restores_the_luma_of_a_colour_image_and_keeps_its_chroma(tmp_path):
    path = tmp_path / "student.pth"
    save_network(path, "dncnn_gray_bn")
    student, image = student_of(path), torch.rand(1, 3, 20, 20)
    y, cb, cr = ycbcr(image)
    luma = student.restore(y.expand(-1, 3, -1, -1))
    assert torch.equal(luma[:, :1].expand(-1, 3, -1, -1), luma)
    assert (luma[:, :1] - y).abs().mean() > 0.01  # so something was restored
    red, blue = luma[:, :1] + 1.402 * cr, luma[:, :1] + 1.772 * cb
    green = luma[:, :1] - 0.344136 * cb - 0.714136 * cr
    expected = torch.cat([red, green, blue], 1).clamp(0, 1)
    torch.testing.assert_close(student.restore(image), expected, rtol=0, atol=1e-5)


def test_a_gray_image_stays_gray_to_the_last_digit(tmp_path):
    path = tmp_path / "student.pth"
    save_network(path, "dncnn_gray_bn")
    student, image = student_of(path, tile=16, tile_overlap=8), torch.rand(1, 1, 40, 50).expand(-1, 3, -1, -1)
    restored = student.restore(image)
    assert torch.equal(restored, restored[:, :1].expand(-1, 3, -1, -1))
    plain = ModuleStudent(StudentConfig(device="cpu", tile=16, tile_overlap=8), student.module)
    assert torch.equal(restored, plain.restore(image))  # as if there were no chroma at all


class Twice(torch.nn.Module):
    """A gray network that enlarges twofold: the luma of each pixel, four times."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (x * BT601).sum(1, keepdim=True).expand(-1, 3, -1, -1)
        return torch.nn.functional.interpolate(y, scale_factor=2)


def test_a_gray_student_that_enlarges_gets_bicubic_chroma():
    image = 0.3 + 0.4 * torch.rand(2, 3, 12, 15)
    image[1, :, 6:] = image[1, :1, 6:]  # the lower half is gray
    restored = ModuleStudent(StudentConfig(device="cpu"), Twice(), scale=2, gray=True).restore(image)
    _, cb, cr = ycbcr(image)
    _, restored_cb, restored_cr = ycbcr(restored)
    for kept, given in ((restored_cb, cb), (restored_cr, cr)):
        expected = torch.nn.functional.interpolate(given, scale_factor=2, mode="bicubic")
        torch.testing.assert_close(kept, expected, rtol=0, atol=1e-5)
    below = restored[1, :, 18:]  # beyond the reach of the colours
    assert torch.equal(below, below[:1].expand(3, -1, -1))


def test_a_network_that_is_gray_and_does_not_say_so_is_told_of(caplog):
    say_once.cache_clear()
    student = ModuleStudent(StudentConfig(device="cpu"), Twice(), scale=2)
    gray = torch.rand(1, 1, 8, 8).expand(-1, 3, -1, -1)
    with caplog.at_level("WARNING", logger="gmd_ray"):
        student.restore(gray)
        assert caplog.records == []
        student.restore(torch.rand(1, 3, 8, 8))
        student.restore(torch.rand(1, 3, 8, 8))
    [line] = [record.getMessage() for record in caplog.records]
    assert "Twice makes gray images of colour ones" in line
    assert "gray=True" in line


def test_a_gray_student_is_named_once_and_has_a_fingerprint_of_its_own(tmp_path, caplog):
    path = tmp_path / "student.pth"
    save_network(path, "dncnn_gray_bn")
    say_once.cache_clear()
    with caplog.at_level("INFO", logger="gmd_ray"):
        student = student_of(path)
        student_of(path)
    [line] = [record.getMessage() for record in caplog.records]
    assert "restores gray" in line
    assert "keeps the chroma" in line
    network = student.module
    kept, lost = (
        ModuleStudent(StudentConfig(device="cpu"), network, name="DnCNN", gray=gray).fingerprint
        for gray in (True, False)
    )
    assert kept != lost


def test_bfloat16_is_autocast_close_to_float32_and_its_own_fingerprint(tmp_path):
    path = tmp_path / "student.pth"
    save_network(path, "swinir_x2")
    full, half, image = student_of(path), student_of(path, dtype="bfloat16"), torch.rand(1, 3, 32, 32)
    difference = (full.restore(image) - half.restore(image)).abs()
    assert half.restore(image).dtype == torch.float32
    assert 0 < difference.max() < 0.05
    assert all(parameter.dtype == torch.float32 for parameter in half.module.parameters())
    assert full.fingerprint != half.fingerprint


def test_tiles_of_a_convolutional_student_change_nothing(tmp_path):
    path = tmp_path / "student.pth"
    save_network(path, "dncnn")  # 9 layers of 3x3: each pixel sees 9 around it, so the overlap is at least 4 * 9
    image = torch.rand(1, 3, 100, 150)
    whole, tiled = student_of(path), student_of(path, tile=64, tile_overlap=40)
    torch.testing.assert_close(tiled.restore(image), whole.restore(image), rtol=0, atol=1e-5)
    pieces = student_of(path, tile=64, tile_overlap=0).restore(image)
    assert (pieces - whole.restore(image)).abs().max() > 1e-4  # so tiles were used
    scaled = tmp_path / "scaled.pth"
    save_network(scaled, "esrgan_old")
    assert student_of(scaled, tile=32, tile_overlap=8).restore(image).shape == (1, 3, 200, 300)


def test_fingerprint_follows_weights_and_settings_not_the_path(tmp_path):
    first, second, other = tmp_path / "a.pth", tmp_path / "b.ckpt", tmp_path / "c.pth"
    weights = save_network(first, "dncnn")
    save_network(second, "dncnn", lambda w: {"params": w, "iter": 5})
    torch.save({**weights, "model.0.bias": weights["model.0.bias"] + 1e-3}, other)
    base = student_of(first)
    assert len(base.fingerprint) == 16
    assert base.fingerprint == student_of(second).fingerprint
    # Without tiles the overlap changes no pixel.
    assert base.fingerprint == student_of(first, tile_overlap=7).fingerprint
    distinct = {
        base.fingerprint,
        student_of(other).fingerprint,
        student_of(first, tile=64).fingerprint,
        student_of(first, tile=64, tile_overlap=7).fingerprint,
    }
    assert len(distinct) == 4


def real_dncnn(shared_data: Path) -> Path:
    return shared_data / "weights" / "dncnn_25.pth"


def test_real_dncnn_denoises(shared_data):
    student = student_of(real_dncnn(shared_data))
    assert (student.architecture, student.scale) == ("DnCNN", 1)
    assert student.module.input_channels == 1
    image = sorted((shared_data / "source_hq").glob("*.png"))[0]
    clean = torch.from_numpy(np.asarray(Image.open(image).convert("L"), np.float32) / 255)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * 25 / 255
    restored = student.restore((clean + noise).expand(1, 3, -1, -1))[0, 0]

    def psnr(x: torch.Tensor) -> float:
        return -10 * (x - clean).square().mean().log10().item()

    assert psnr(restored) > psnr(clean + noise) + 7


def test_real_dncnn_round_trip(shared_data, tmp_path):
    source = real_dncnn(shared_data)
    student = student_of(source)
    student.save(tmp_path / "dncnn_25.pth")
    before, after = (torch.load(path, weights_only=True) for path in (source, tmp_path / "dncnn_25.pth"))
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert student_of(tmp_path / "dncnn_25.pth").fingerprint == student.fingerprint


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(tmp_path):
    path = tmp_path / "student.pth"
    save_network(path, "swinir_x2")
    image = torch.rand(2, 3, 40, 52)
    on_gpu = load_student(StudentConfig(path=str(path), device="cuda"))
    assert next(on_gpu.module.parameters()).is_cuda
    torch.testing.assert_close(on_gpu.restore(image), student_of(path).restore(image), rtol=0, atol=2e-3)
    on_gpu.save(tmp_path / "saved.pth")
    assert student_of(tmp_path / "saved.pth").fingerprint == on_gpu.fingerprint

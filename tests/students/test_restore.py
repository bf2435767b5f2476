"""What a student does to an image: against spandrel's own call, for any size and batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from spandrel import ModelLoader

from gmd_ray.config import StudentConfig
from gmd_ray.students import Student, load_student
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


def test_gray_student_sees_luma_and_returns_it_in_three_channels(tmp_path):
    path = tmp_path / "student.pth"
    save_network(path, "dncnn_gray_bn")
    student, image = student_of(path), torch.rand(1, 3, 20, 20)
    restored = student.restore(image)
    assert torch.equal(restored[:, :1].expand(-1, 3, -1, -1), restored)
    gray = (image * BT601).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(student.restore(gray), restored, rtol=0, atol=1e-5)


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

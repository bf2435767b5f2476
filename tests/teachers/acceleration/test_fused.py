"""Fused elementwise work against the plain path."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.acceleration.flux1_blocks import fuse_blocks
from gmd_ray.teachers.acceleration.fused import is_dense, linear_gelu, split_linear
from gmd_ray.teachers.acceleration.group_norm import speed_up_autoencoder, trustworthy_group_norm
from gmd_ray.teachers.acceleration.modulated_norm import trustworthy_norm
from gmd_ray.teachers.flux.teacher import FluxTeacher
from tests.teachers.acceleration.interpreted import greatest_gap, group_norm_gap, norm_gap
from tests.teachers.flux.test_teacher import config, ids, images

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_kernel_in_tritons_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.teachers.acceleration.interpreted"]
    found = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    lines = found.stdout.splitlines()
    assert len(lines) == 16
    assert all(line.endswith(" ok") for line in lines), lines


@pytest.mark.gpu
def test_the_kernel_on_a_gpu() -> None:
    for dtype, limit in ((torch.float32, 1e-6), (torch.bfloat16, 2**-6)):
        assert greatest_gap(dtype, 2, [512, 1024], 24, 128, "cuda") <= limit


@pytest.mark.gpu
def test_the_other_kernels_on_a_gpu() -> None:
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 2**-6)):
        assert norm_gap(dtype, 2, 77, 3072, 1, "cuda") <= limit
        assert group_norm_gap(dtype, (2, 128, 65, 33), 32, device="cuda") <= limit
        assert trustworthy_norm(torch.device("cuda"), dtype, compiled=False)
        assert trustworthy_group_norm(torch.device("cuda"), dtype)


@pytest.mark.gpu
@torch.no_grad()
def test_gelu_in_the_product_on_a_gpu() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3072, 4096, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(2, 77, 3072, device="cuda", dtype=torch.bfloat16)
    torch.testing.assert_close(linear_gelu(layer, x), F.gelu(layer(x), approximate="tanh"), atol=2e-2, rtol=2e-2)


@torch.no_grad()
def test_a_split_product_is_the_product_of_both() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5 * 16, 16)
    left, right = torch.randn(2, 7, 16), torch.randn(2, 7, 64)
    expected = layer(torch.cat([left, right], dim=-1))
    torch.testing.assert_close(split_linear(layer, left, right), expected, atol=1e-6, rtol=1e-6)
    assert split_linear(layer, left[:, :0], right[:, :0]).shape == (2, 0, 16)
    assert is_dense(layer)
    assert not is_dense(nn.Identity())


@torch.no_grad()
def test_an_autoencoder_with_attention_keeps_its_output() -> None:
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(**blocks, block_out_channels=[8, 16], latent_channels=4, norm_num_groups=4).eval()
    x = torch.rand(2, 3, 16, 24)
    plain = vae(x).sample
    names = set(vae.state_dict())
    speed_up_autoencoder(vae)
    assert set(vae.state_dict()) == names
    kinds = {type(module).__name__ for module in vae.modules() if "Resnet" in type(module).__name__}
    assert kinds == {"NormedResnet"}
    torch.testing.assert_close(vae(x).sample, plain, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_blocks_with_fused_products_are_the_blocks(flux_dir: Path) -> None:
    x = images(2, 16, 24)
    plain, teacher = load_teacher(config(flux_dir)), load_teacher(config(flux_dir))
    assert isinstance(teacher, FluxTeacher)
    names = set(teacher.model.state_dict())
    fuse_blocks(teacher.model, kernel=False)
    assert set(teacher.model.state_dict()) == names
    kinds = [type(block).__name__ for block in teacher.model._blocks()]
    assert kinds == ["FusedDoubleBlock", "SplitSingleBlock", "SplitSingleBlock"]
    torch.testing.assert_close(teacher.project(x, ids(x)), plain.project(x, ids(x)), atol=1e-5, rtol=0)


def test_blocks_of_quantized_layers_are_the_blocks(flux_dir: Path) -> None:
    x = images(1, 16, 24)
    plain, teacher = (load_teacher(config(flux_dir, precision="fp8")) for _ in range(2))
    assert isinstance(teacher, FluxTeacher)
    fuse_blocks(teacher.model, kernel=False)
    torch.testing.assert_close(teacher.project(x, ids(x)), plain.project(x, ids(x)), atol=1e-5, rtol=0)

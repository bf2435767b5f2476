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
from gmd_ray.teachers.acceleration.flux1_blocks import fuse_products
from gmd_ray.teachers.acceleration.fused import is_dense, linear_gelu, split_linear
from gmd_ray.teachers.acceleration.group_norm import split_group_norm, use_split_group_norm
from gmd_ray.teachers.flux.teacher import FluxTeacher
from tests.teachers.acceleration.interpreted import greatest_gap
from tests.teachers.flux.test_teacher import config, ids, images

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_kernel_in_tritons_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.teachers.acceleration.interpreted"]
    found = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    lines = found.stdout.splitlines()
    assert len(lines) == 6
    assert all(line.endswith(" ok") for line in lines), lines


@pytest.mark.gpu
def test_the_kernel_on_a_gpu() -> None:
    for dtype, limit in ((torch.float32, 1e-6), (torch.bfloat16, 2**-6)):
        assert greatest_gap(dtype, 2, [512, 1024], 24, 128, "cuda") <= limit


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


@pytest.mark.parametrize("shape", [(2, 8, 16, 12), (1, 8, 5, 7), (1, 32, 8, 8), (2, 8, 30)])
@torch.no_grad()
def test_group_norm_in_two_steps(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, shape[1], eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(shape) * 3 + 5
    torch.testing.assert_close(split_group_norm(norm, x), norm(x), atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_an_autoencoder_with_attention_keeps_its_output() -> None:
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(**blocks, block_out_channels=[8, 16], latent_channels=4, norm_num_groups=4).eval()
    x = torch.rand(2, 3, 16, 24)
    plain = vae(x).sample
    use_split_group_norm(vae)
    torch.testing.assert_close(vae(x).sample, plain, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_blocks_with_fused_products_are_the_blocks(flux_dir: Path) -> None:
    x = images(2, 16, 24)
    plain, teacher = load_teacher(config(flux_dir)), load_teacher(config(flux_dir))
    assert isinstance(teacher, FluxTeacher)
    names = set(teacher.model.state_dict())
    fuse_products(teacher.model)
    assert set(teacher.model.state_dict()) == names
    kinds = [type(block).__name__ for block in teacher.model._blocks()]
    assert kinds == ["FluxTransformerBlock", "SplitSingleBlock", "SplitSingleBlock"]
    torch.testing.assert_close(teacher.project(x, ids(x)), plain.project(x, ids(x)), atol=1e-5, rtol=0)


def test_quantized_layers_are_left_alone(flux_dir: Path) -> None:
    x = images(1, 16, 24)
    plain, teacher = (load_teacher(config(flux_dir, quantization="fp8")) for _ in range(2))
    assert isinstance(teacher, FluxTeacher)
    fuse_products(teacher.model)
    assert torch.equal(teacher.project(x, ids(x)), plain.project(x, ids(x)))

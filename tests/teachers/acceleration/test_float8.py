"""Products in 8 bits: their rounding, and what they do to a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.acceleration.float8 import FP8, LARGEST, Float8Linear, rounded
from gmd_ray.teachers.flux.teacher import FluxTeacher
from tests.teachers.flux.test_teacher import config, ids, images

CPU = torch.device("cpu")


def test_each_row_has_its_own_scale() -> None:
    rows = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1e-3], [1], [50], [1e4], [0]]
    )
    numbers, scale = rounded(rows)
    assert numbers.dtype == FP8
    assert scale.shape == (5, 1)
    assert (numbers.float().abs().amax(dim=1)[:4] == LARGEST).all()
    gap = (numbers.float() * scale - rows).abs()
    assert (gap <= rows.abs() / 16 + 1e-12 + rows.abs().amax(dim=1, keepdim=True) / (LARGEST * 2**10)).all()
    assert gap.max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_product_of_rounded_numbers(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 32, bias=bias).to(dtype)
    x = torch.randn(2, 7, 48, dtype=dtype)
    found = Float8Linear(layer, CPU)(x)
    assert (found.shape, found.dtype) == ((2, 7, 32), dtype)
    # Spelled out in float64, from numbers that a table of all 256 values of the format gives.
    table = torch.arange(256, dtype=torch.uint8).view(FP8).double()
    table = table[table.isfinite()]

    def nearest(rows: torch.Tensor) -> torch.Tensor:
        scale = rows.double().abs().amax(dim=-1, keepdim=True) / 448
        at = ((rows.double() / scale)[..., None] - table).abs().argmin(dim=-1)
        return table[at] * scale

    expected = nearest(x) @ nearest(layer.weight).T + (layer.bias.double() if bias else 0)
    # A number between two of the format's may round to either in float32 and float64.
    torch.testing.assert_close(found.double(), expected, atol=2e-2, rtol=1e-2)
    exact = layer.double()(x.double())
    error, ours = (expected - exact).abs().mean(), (found.double() - exact).abs().mean()
    assert ours == pytest.approx(error.item(), rel=0.1)


def test_no_rows() -> None:
    assert Float8Linear(nn.Linear(16, 32), CPU)(torch.zeros(2, 0, 16)).shape == (2, 0, 32)


@pytest.mark.parametrize("change", [{}, {"dtype": "bfloat16"}, {"offload": "group"}], ids=str)
def test_a_teacher_in_eight_bits(flux_dir: Path, change: dict[str, Any]) -> None:
    x = images(1, 16, 24)
    plain, teacher = (load_teacher(config(flux_dir, precision=p, **change)) for p in ("same", "fp8"))
    assert isinstance(teacher, FluxTeacher)
    block = teacher.model.transformer_blocks[0]
    assert block.attn.to_q.numbers.dtype == FP8
    assert not [name for name, layer in block.named_modules() if isinstance(layer, nn.Linear)]
    assert teacher.model.x_embedder.weight.dtype == teacher.projector._dtype
    found, exact = (t.project(x, ids(x)) for t in (teacher, plain))
    assert 1e-5 < (found - exact).abs().mean() < 0.03
    assert teacher.fingerprint != plain.fingerprint


@pytest.mark.gpu
@torch.no_grad()
def test_the_gpu_multiplies_the_same_numbers() -> None:
    """Equal to the emulation, which a float32 input takes, to the rounding of a bfloat16 result."""
    torch.manual_seed(0)
    layer = nn.Linear(3072, 1536).to("cuda", torch.bfloat16)
    x = torch.randn(2, 100, 3072, device="cuda", dtype=torch.bfloat16)
    product = Float8Linear(layer, x.device)
    torch.testing.assert_close(product(x).float(), product(x.float()), atol=2e-2, rtol=2e-2)

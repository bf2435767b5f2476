"""The kernels of `acceleration` in Triton's interpreter, against the plain path; run with TRITON_INTERPRET=1."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from gmd_ray.teachers.acceleration.fused import joined_norm_rope, plain_norm_rope
from gmd_ray.teachers.acceleration.group_norm import norm_silu
from gmd_ray.teachers.acceleration.kernels import INTERPRETED
from gmd_ray.teachers.acceleration.modulated_norm import gated_sum_and_norm, modulated_norm


def greatest_gap(dtype: torch.dtype, batch: int, tokens: list[int], heads: int, dim: int, device: str = "cpu") -> float:
    """The greatest difference of the two paths, as a share of the largest output."""
    torch.manual_seed(0)
    parts = []
    for count in tokens:
        norm = nn.RMSNorm(dim, eps=1e-6).to(device, dtype)
        nn.init.normal_(norm.weight, 1.0, 0.2)
        # A slice of a wider tensor, as where queries, keys and values come from one product.
        x = torch.randn(batch, count, heads * dim + 8, dtype=dtype)[..., : heads * dim]
        parts.append((x.unflatten(-1, (heads, dim)).to(device), norm))
    angles = torch.randn(sum(tokens), dim // 2).repeat_interleave(2, dim=1).to(device)
    rope = (angles.cos(), angles.sin())
    with torch.no_grad():
        expected, found = plain_norm_rope(parts, rope), joined_norm_rope(parts, rope)
    assert found.is_contiguous()
    assert found.dtype == dtype
    return ((found - expected).abs().max() / expected.abs().max()).item()


def norm_gap(dtype: torch.dtype, batch: int, tokens: int, dim: int, rows: int, device: str = "cpu") -> float:
    """The greatest difference of the modulated norms from PyTorch's own, as a share of the largest output.

    Args:
        rows: rows of the modulation: 1 for all images, or one for each.
    """
    torch.manual_seed(0)
    # Slices of wider tensors, as the streams and the columns of a block are.
    residual, update = (torch.randn(batch, tokens + 3, dim, dtype=dtype).to(device)[:, 3:] for _ in range(2))
    gate, scale, shift = torch.randn(rows, 4 * dim, dtype=dtype).to(device).chunk(4, dim=1)[1:]

    def run(*, kernel: bool) -> torch.Tensor:
        total, out = gated_sum_and_norm(residual, gate, update, scale, shift, kernel=kernel)
        return torch.cat([total, out, modulated_norm(residual, scale, shift, kernel=kernel)])

    with torch.no_grad():
        expected, found = run(kernel=False), run(kernel=True)
    return ((found - expected).abs().max() / expected.abs().max()).item()


def group_norm_gap(dtype: torch.dtype, shape: tuple[int, ...], groups: int, device: str = "cpu") -> float:
    """The greatest difference of the group norm from PyTorch's own, with and without SiLU, as a share of the output."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, shape[1], eps=1e-6).to(device, dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    dense = torch.randn(shape[0], *shape[2:], shape[1]) * 3 + 5
    x = dense.to(device, dtype).movedim(-1, 1)  # channels side by side
    gaps = []
    for silu in (False, True):
        with torch.no_grad():
            expected = F.group_norm(x, groups, norm.weight, norm.bias, norm.eps)
            expected = F.silu(expected) if silu else expected
            found = norm_silu(norm, x, silu=silu)
        assert found.stride() == x.stride()
        gaps.append(((found - expected).abs().max() / expected.abs().max()).item())
    return max(gaps)


def report(gap: float, limit: float, *case: object) -> None:
    print(*case, f"{gap:.2e}", "ok" if gap <= limit else "FAILED")


if __name__ == "__main__":
    assert INTERPRETED
    for dtype, limit in ((torch.float32, 1e-6), (torch.bfloat16, 2**-6)):
        for case in ((1, [3, 7], 2, 16), (2, [0, 5], 3, 24), (2, [4], 24, 128)):
            report(greatest_gap(dtype, *case), limit, "norm and rotation", dtype, case)
        for sizes in ((2, 5, 24, 1), (2, 5, 24, 2)):
            report(norm_gap(dtype, *sizes), limit, "modulated norm", dtype, sizes)
        # More pixels than one piece, a number of them that no tile divides, and tokens in the place of pixels.
        for shape, groups in (((2, 8, 16, 12), 4), ((1, 32, 45, 37), 8), ((2, 16, 30), 4)):
            report(group_norm_gap(dtype, shape, groups), 2 * limit, "group norm", dtype, shape)

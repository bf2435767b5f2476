"""The kernels of `acceleration.fused` in Triton's interpreter, against the plain path; run with TRITON_INTERPRET=1."""

from __future__ import annotations

import torch
from torch import nn

from gmd_ray.teachers.acceleration.fused import INTERPRETED, joined_norm_rope, plain_norm_rope


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


if __name__ == "__main__":
    assert INTERPRETED
    for dtype, limit in ((torch.float32, 1e-6), (torch.bfloat16, 2**-6)):
        for case in ((1, [3, 7], 2, 16), (2, [0, 5], 3, 24), (2, [4], 24, 128)):
            gap = greatest_gap(dtype, *case)
            print(dtype, case, f"{gap:.2e}", "ok" if gap <= limit else "FAILED")

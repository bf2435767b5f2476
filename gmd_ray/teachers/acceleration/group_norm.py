"""Group norm of an autoencoder in steps that keep a whole GPU busy.

PyTorch computes the moments of a group in one block of threads. One image has 32 groups, so 32 blocks, and an H100 has
132 processors: the moments took 42 % of the autoencoder's time there. Here every group is cut into pieces.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

PIECES = 64
"""Most pieces of a group."""


def split_group_norm(norm: nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    """The output of a group norm with weight and bias for a dense tensor; sums are taken in float32.

    Args:
        x: (B, C, ...), in an autoencoder (B, C, H, W), and (B, C, pixels) before its attention.
    """
    batch, channels = x.shape[:2]
    groups = norm.num_groups
    count = x[0].numel() // groups
    pieces = next(n for n in range(PIECES, 0, -1) if count % n == 0)
    parts = x.reshape(batch, groups, pieces, count // pieces)
    mean = parts.sum(dim=-1, dtype=torch.float32).sum(dim=-1) / count  # (B, groups)
    square = torch.linalg.vector_norm(parts, dim=-1, dtype=torch.float32).square().sum(dim=-1) / count
    rate = (square - mean.square()).clamp(min=0).add(norm.eps).rsqrt()
    # One multiplication and addition for each channel.
    each = channels // groups
    scale = norm.weight.float() * rate.repeat_interleave(each, dim=1)  # (B, C)
    shift = norm.bias.float() - mean.repeat_interleave(each, dim=1) * scale
    # Written in the type of `x`: a whole activation in float32 would be more than the memory plan knows of.
    shape = (batch, channels, *[1] * (x.ndim - 2))
    return torch.addcmul(shift.view(shape), x, scale.view(shape), out=torch.empty_like(x))


def use_split_group_norm(model: nn.Module) -> None:
    """Let every group norm of a model with weights compute in this way."""
    for module in model.modules():
        if type(module) is nn.GroupNorm and module.affine:
            module.forward = partial(split_group_norm, module)  # type: ignore[method-assign]

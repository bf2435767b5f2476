"""Padding of images to the sizes that a model accepts."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def pad(x: torch.Tensor, bottom: int, right: int) -> torch.Tensor:
    """Pad (B, C, H, W) to (B, C, H + bottom, W + right) by reflection.

    Where the image is too small to reflect, its border is repeated.
    """
    height, width = x.shape[-2:]
    mirrored = min(right, width - 1), min(bottom, height - 1)
    if any(mirrored):
        x = F.pad(x, (0, mirrored[0], 0, mirrored[1]), "reflect")
    repeated = right - mirrored[0], bottom - mirrored[1]
    return F.pad(x, (0, repeated[0], 0, repeated[1]), "replicate") if any(repeated) else x


def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad (B, C, H, W) at the right and bottom with `pad`, so that both sides are multiples of `multiple`."""
    return pad(x, -x.shape[-2] % multiple, -x.shape[-1] % multiple)

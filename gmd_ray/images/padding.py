"""Padding to sides that a model works on."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def pad(x: torch.Tensor, bottom: int, right: int) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, H + bottom, W + right): reflected, and repeated where there is too little to reflect."""
    height, width = x.shape[-2:]
    mirrored = min(right, width - 1), min(bottom, height - 1)
    if any(mirrored):
        x = F.pad(x, (0, mirrored[0], 0, mirrored[1]), "reflect")
    repeated = right - mirrored[0], bottom - mirrored[1]
    return F.pad(x, (0, repeated[0], 0, repeated[1]), "replicate") if any(repeated) else x


def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """(B, C, H, W) padded at the right and bottom, as `pad` does, to sides that are multiples."""
    return pad(x, -x.shape[-2] % multiple, -x.shape[-1] % multiple)

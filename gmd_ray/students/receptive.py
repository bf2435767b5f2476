"""How far a network looks, measured; and the overlap of tiles that follows from it."""

from __future__ import annotations

import torch
from torch import nn

from gmd_ray.students.common import evaluating

_SIDE = 136
_BLOCK = 8
"""Side of the square in the middle whose outputs are traced: each place in a window, each phase of a stride."""
_STEP = 8
_LEAST = 32


def receptive_radius(module: nn.Module, scale: int = 1, share: float = 1e-3) -> int:
    """Pixels beyond which a network hardly looks: outside lies at most `share` of an output pixel's sensitivity.

    The theoretical radius of a deep network is far larger than what ever changes a digit (Real-ESRGAN: 350 pixels), so
    the gradient of a few outputs towards a random image is measured.

    Args:
        module: maps (1, 3, H, W) to (1, 3, H * scale, W * scale).
        scale: output side over input side.
        share: of the sum of absolute gradients.

    Returns:
        Input pixels, at most 64: what looks farther is taken to look everywhere.
    """
    device = next(module.parameters()).device
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, _SIDE, _SIDE, generator=generator).to(device).requires_grad_()
    start, end = (_SIDE - _BLOCK) // 2, (_SIDE + _BLOCK) // 2
    with evaluating(module), torch.enable_grad():
        seen = module(image)[..., start * scale : end * scale, start * scale : end * scale]
        signs = torch.randint(0, 2, seen.shape, generator=generator).to(seen) * 2 - 1  # so that no two cancel
        [gradient] = torch.autograd.grad((seen * signs).sum(), image)
    distance = torch.arange(_SIDE)
    distance = torch.maximum(start - distance, distance - (end - 1)).clamp_min(0)
    square = torch.maximum(distance[:, None], distance[None])
    mass = torch.zeros(start + 1, dtype=torch.float64)
    mass.index_add_(0, square.flatten(), gradient.abs().sum((0, 1)).double().cpu().flatten())
    outside = mass.sum() - mass.cumsum(0)
    return int((outside > share * mass.sum()).sum())


def overlap_for(module: nn.Module, scale: int, tile: int) -> int:
    """The overlap at which tiles give what the whole image would: four receptive radii.

    `gmd_ray.images.tiling` drops the outer quarter of an overlap as mere context and fades over its half. Rounded up to
    a multiple of 8, as windows of attention are; at least 32, and at most half a tile.
    """
    wanted = max(_LEAST, -(-4 * receptive_radius(module, scale) // _STEP) * _STEP)
    return min(wanted, tile // 2)

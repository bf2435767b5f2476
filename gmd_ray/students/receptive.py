"""Measuring the receptive radius of a network, and the overlap of tiles that follows from it."""

from __future__ import annotations

import torch
from torch import nn

from gmd_ray.students.common import evaluating

_SIDE = 136
"""Side of the test image in pixels."""
_BLOCK = 8
"""Side of the central square whose outputs are traced. It covers all positions in a window and phases of a stride."""
_STEP = 8
"""The overlap is a multiple of this, as attention windows usually are."""
_LEAST = 32
"""The smallest overlap in pixels."""


def receptive_radius(module: nn.Module, scale: int = 1, share: float = 1e-3) -> int:
    """Measure the radius within which input pixels matter to an output pixel.

    The theoretical radius of a deep network is far larger than the one that ever changes a digit (Real-ESRGAN: 350
    pixels). So the gradient of a few outputs with respect to a random image is measured instead.

    Args:
        module: network that maps (1, 3, H, W) to (1, 3, H * scale, W * scale).
        scale: output side divided by input side.
        share: share of the sum of absolute gradients that may lie outside the radius.

    Returns:
        the radius in input pixels, at most 64. A network that reaches 64 is assumed to have an unlimited radius.
    """
    device = next(module.parameters()).device
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, _SIDE, _SIDE, generator=generator).to(device).requires_grad_()
    start, end = (_SIDE - _BLOCK) // 2, (_SIDE + _BLOCK) // 2
    with evaluating(module), torch.enable_grad():
        seen = module(image)[..., start * scale : end * scale, start * scale : end * scale]
        # Random signs, so that the gradients of the outputs do not cancel systematically.
        signs = torch.randint(0, 2, seen.shape, generator=generator).to(seen) * 2 - 1
        [gradient] = torch.autograd.grad((seen * signs).sum(), image)
    # `square` (136, 136) is each pixel's Chebyshev distance from the block; `mass` (65,) sums |gradient| by distance.
    distance = torch.arange(_SIDE)
    distance = torch.maximum(start - distance, distance - (end - 1)).clamp_min(0)
    square = torch.maximum(distance[:, None], distance[None])
    mass = torch.zeros(start + 1, dtype=torch.float64)
    mass.index_add_(0, square.flatten(), gradient.abs().sum((0, 1)).double().cpu().flatten())
    outside = mass.sum() - mass.cumsum(0)
    return int((outside > share * mass.sum()).sum())


def overlap_for(module: nn.Module, scale: int, tile: int) -> int:
    """Return the overlap in pixels at which tiles give the result of the whole image: four receptive radii.

    `gmd_ray.images.tiling` uses the outer quarter of an overlap only as context. The overlap is rounded up to a
    multiple of 8; it is at least 32, and at most half a tile.
    """
    wanted = max(_LEAST, -(-4 * receptive_radius(module, scale) // _STEP) * _STEP)
    return min(wanted, tile // 2)

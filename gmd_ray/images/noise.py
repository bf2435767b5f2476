"""Noise that belongs to an image: the same on any device, in any batch and in any tile."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

from gmd_ray.images.tiling import tiled_in_batches


def image_noise(image_id: str, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal noise, float32, that depends on the id and the shape alone.

    It is drawn on the CPU, whose generator gives the same numbers on every machine.

    Args:
        image_id: any text; the first 8 bytes of its SHA-256 seed the generator.
        shape: of the result.
    """
    seed = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "little", signed=True)
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def tiled_with_noise(
    fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    noise: torch.Tensor,
    tile: int,
    overlap: int,
    grid: int,
    batch: int = 1,
) -> torch.Tensor:
    """Apply `fn` tile by tile as `images.tiling.tiled` does, and give each tile its part of the whole image's noise.

    Neighbouring tiles see the same noise where they overlap, so their results agree there and blend without ghosts.

    Args:
        fn: maps (B, 3, h, w) and its noise (B, C, h / f, w / f) to (B, 3, h, w).
        images: (B, 3, H, W); H and W are multiples of `grid`.
        noise: (B, C, H / f, W / f).
        tile, overlap: in pixels, multiples of `grid`.
        grid: a multiple of f; tiles begin at multiples of it.
        batch: see `tiled`.

    Returns:
        (B, 3, H, W).
    """
    f = images.shape[-1] // noise.shape[-1]

    def part(pieces: torch.Tensor, places: Sequence[tuple[int, int]]) -> torch.Tensor:
        h, w = pieces.shape[-2:]
        # One tile of every image, then the next, as in `pieces`.
        return fn(pieces, torch.cat([noise[..., y // f : (y + h) // f, x // f : (x + w) // f] for y, x in places]))

    return tiled_in_batches(part, images, tile, overlap, multiple=grid, batch=batch)

"""Running a model over a large image in overlapping tiles, blended without seams."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gmd_ray.errors import ConfigError


def tiled(fn: Callable[[Tensor], Tensor], image: Tensor, tile: int, overlap: int, scale: int = 1) -> Tensor:
    """Apply `fn` tile by tile.

    The grid depends on the image's size alone: evenly spaced tiles of one size, that overlap by at least `overlap`.
    Across each overlap the weight passes from one tile to the next along a half cosine in its middle half; the outer
    quarter next to a cut counts for nothing. So a convolutional `fn` whose receptive radius is at most a quarter of
    `overlap` gives what it would give on the whole image, to rounding.

    Args:
        fn: maps (B, 3, h, w) to (B, C, h * scale, w * scale).
        image: (B, 3, H, W).
        tile: side of the tiles in input pixels; 0, or a tile that holds the whole image, calls `fn` once. Along an
            axis shorter than the tile, the tiles are as long as the image.
        overlap: least overlap of neighbours in input pixels, below `tile`.
        scale: output pixels per input pixel, of `fn`.

    Returns:
        (B, C, H * scale, W * scale), on the device and of the type of `fn`'s output.

    Raises:
        ConfigError: for a negative tile, or an overlap outside [0, tile).
    """
    return tiled_at(lambda piece, y, x: fn(piece), image, tile, overlap, scale)


def tiled_at(
    fn: Callable[[Tensor, int, int], Tensor], image: Tensor, tile: int, overlap: int, scale: int = 1, grid: int = 1
) -> Tensor:
    """`tiled` for an `fn` that is told where its tile begins.

    Args:
        fn: as in `tiled`, of the tile and its first row and column in the image.
        grid: tiles begin at multiples of it; height, width, tile and overlap must be multiples too.

    Raises:
        ConfigError: as `tiled`.
    """
    if tile < 0 or (tile and not 0 <= overlap < tile):
        raise ConfigError(f"tile={tile}, tile_overlap={overlap}: give 0 <= overlap < tile, or tile=0 for whole images")
    height, width = image.shape[-2:]
    if tile == 0 or (height <= tile and width <= tile):
        return fn(image, 0, 0)
    assert not any(length % grid for length in (height, width, tile, overlap)), (image.shape, tile, overlap, grid)
    rows, columns = (
        [grid * start for start in tile_starts(size // grid, tile // grid, overlap // grid)] for size in (height, width)
    )
    h, w = min(tile, height), min(tile, width)
    row_weights, column_weights = _weights(rows, h, scale), _weights(columns, w, scale)
    out: Tensor | None = None
    for y, row_weight in zip(rows, row_weights, strict=True):
        for x, column_weight in zip(columns, column_weights, strict=True):
            piece = fn(image[..., y : y + h, x : x + w], y, x)
            assert piece.shape[-2:] == (h * scale, w * scale), (piece.shape, (h, w), scale)
            if out is None:
                out = piece.new_zeros(*piece.shape[:-2], height * scale, width * scale)
            weight = (row_weight[:, None] * column_weight[None]).to(piece)
            out[..., y * scale : (y + h) * scale, x * scale : (x + w) * scale] += piece * weight
    assert out is not None
    return out


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles along one axis begin: as few as cover it, evenly spaced."""
    if size <= tile:
        return [0]
    intervals = math.ceil((size - tile) / (tile - overlap))
    return [i * (size - tile) // intervals for i in range(intervals + 1)]


def _weights(starts: list[int], tile: int, scale: int) -> list[Tensor]:
    """One weight per output pixel of each tile along one axis, float64; they add up to 1 over the tiles."""
    length = tile * scale
    centers = torch.arange(length, dtype=torch.float64) + 0.5
    weights = []
    for i, start in enumerate(starts):
        weight = torch.ones(length, dtype=torch.float64)
        if i > 0:
            weight *= _ramp(centers, (starts[i - 1] + tile - start) * scale)
        if i + 1 < len(starts):
            weight *= _ramp(length - centers, (start + tile - starts[i + 1]) * scale)
        weights.append(weight)
    total = torch.zeros((starts[-1] + tile) * scale, dtype=torch.float64)
    for start, weight in zip(starts, weights, strict=True):
        total[start * scale : start * scale + length] += weight
    return [w / total[s * scale : s * scale + length] for s, w in zip(starts, weights, strict=True)]


def _ramp(depth: Tensor, overlap: int) -> Tensor:
    """Weight at `depth` pixels from a cut: 0 for a quarter of the overlap, a half cosine for its half, then 1."""
    if overlap == 0:
        return torch.ones_like(depth)
    t = ((depth - overlap / 4) / (overlap / 2)).clamp(0, 1)
    return 0.5 - 0.5 * torch.cos(math.pi * t)

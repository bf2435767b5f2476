"""Running a model over a large image in overlapping tiles, blended without seams."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor

from gmd_ray.errors import ConfigError

_watcher: ContextVar[Callable[[int, int], None] | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def tiles_watched(tick: Callable[[int, int], None]) -> Iterator[None]:
    """While the context is open, call `tick(done, total)` after each batch of tiles, in the same thread."""
    token = _watcher.set(tick)
    try:
        yield
    finally:
        _watcher.reset(token)


def tiled(
    fn: Callable[[Tensor], Tensor],
    image: Tensor,
    tile: int,
    overlap: int,
    scale: int = 1,
    multiple: int = 1,
    batch: int = 1,
) -> Tensor:
    """Apply `fn` tile by tile and blend the results.

    The grid depends only on the size of the image: evenly spaced tiles of one size that overlap by at least `overlap`.
    Across each overlap, the outer quarters next to the two cuts are discarded, and in the middle half the weight passes
    from one tile to the next along a half cosine. So a convolutional `fn` whose receptive radius is at most a quarter
    of `overlap` gives the same result as on the whole image, up to rounding.

    Args:
        fn: maps (B, 3, h, w) to (B, C, h * scale, w * scale).
        image: (B, 3, H, W).
        tile: side of the tiles in input pixels. With 0, or if the image fits into one tile, `fn` is called once. Along
            an axis shorter than the tile, the tiles are as long as the image.
        overlap: least overlap of neighbouring tiles in input pixels, below `tile`.
        scale: output pixels per input pixel.
        multiple: tiles begin at multiples of this many pixels, and the last tile along an axis may be longer by up to
            as many. Attention windows and strides then fall on each tile as on the whole image; see `grid_multiple`.
        batch: largest number of images that `fn` gets at once: this many tiles of one size, but at least one tile of
            every image in `image`. Halved as often as an accelerator runs out of memory.

    Returns:
        (B, C, H * scale, W * scale), on the device and of the type of `fn`'s output.

    Raises:
        ConfigError: the tile is negative, or the overlap is outside [0, tile).
    """
    return tiled_in_batches(lambda pieces, places: fn(pieces), image, tile, overlap, scale, multiple, batch)


def tiled_in_batches(
    fn: Callable[[Tensor, Sequence[tuple[int, int]]], Tensor],
    image: Tensor,
    tile: int,
    overlap: int,
    scale: int = 1,
    multiple: int = 1,
    batch: int = 1,
) -> Tensor:
    """Apply `fn` as `tiled` does; `fn` also gets the first row and column of each tile.

    With `image` (B, 3, H, W) and n tiles, `fn` gets (n * B, 3, h, w): first one tile of every image, then the next.
    """
    if tile < 0 or (tile and not 0 <= overlap < tile):
        raise ConfigError(f"tile={tile}, tile_overlap={overlap}: give 0 <= overlap < tile, or tile=0 for whole images")
    height, width = image.shape[-2:]
    if tile == 0 or (height <= tile and width <= tile):
        return fn(image, [(0, 0)])
    rows, columns = (tile_spans(side, tile, overlap, multiple) for side in (height, width))
    row_weights, column_weights = _weights(rows, scale), _weights(columns, scale)
    most = max(1, batch // len(image))
    waiting = _batches(rows, columns, most)
    done, out = 0, None
    while waiting:
        tiles = waiting.pop(0)
        spans = [(rows[i], columns[j]) for i, j in tiles]
        pieces = [image[..., top:bottom, left:right] for (top, bottom), (left, right) in spans]
        try:
            made = fn(torch.cat(pieces), [(top, left) for (top, _), (left, _) in spans])
        except torch.OutOfMemoryError:
            if len(tiles) == 1:
                raise
            # Both halves go to the front of the queue, and are halved again if need be.
            half = len(tiles) // 2
            waiting[:0] = [tiles[:half], tiles[half:]]
            continue
        (top, bottom), (left, right) = spans[0]
        assert made.shape[-2:] == ((bottom - top) * scale, (right - left) * scale), (made.shape, spans[0], scale)
        if out is None:
            out = made.new_zeros(len(image), *made.shape[1:-2], height * scale, width * scale)
        # `made` is (n * B, C, h * scale, w * scale): each split is one tile of all B images.
        for (i, j), piece in zip(tiles, made.split(len(image)), strict=True):
            (top, bottom), (left, right) = rows[i], columns[j]
            weight = (row_weights[i][:, None] * column_weights[j][None]).to(piece)
            out[..., top * scale : bottom * scale, left * scale : right * scale] += piece * weight
        done += len(tiles)
        if (tick := _watcher.get()) is not None:
            tick(done, len(rows) * len(columns))
    assert out is not None
    return out


def _batches(
    rows: Sequence[tuple[int, int]], columns: Sequence[tuple[int, int]], most: int
) -> list[list[tuple[int, int]]]:
    """Group the tiles' (row, column) indices into batches of one size, at most `most` each.

    Batches of a single tile are in reading order.
    """
    by_size: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            by_size[(bottom - top, right - left)].append((i, j))
    batches = [tiles[k : k + most] for tiles in by_size.values() for k in range(0, len(tiles), most)]
    return sorted(batches) if most == 1 else batches


def tile_spans(size: int, tile: int, overlap: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Return (begin, end) of the tiles along one axis: the fewest that cover it, evenly spaced up to the multiple."""
    if size <= tile:
        return [(0, size)]
    # Rounding the beginnings down to multiples can move neighbours apart by up to `multiple - 1` pixels.
    slack = multiple - 1 if any(length % multiple for length in (size, tile, overlap)) else 0
    intervals = math.ceil((size - tile) / max(1, tile - overlap - slack))
    # A set removes duplicates: if the image is hardly longer than the tile, the last tile may begin with the first.
    starts = sorted({i * (size - tile) // intervals // multiple * multiple for i in range(intervals + 1)})
    return [(start, start + tile) for start in starts[:-1]] + [(starts[-1], size)]


def grid_multiple(tile: int, overlap: int) -> int:
    """Return a `multiple` for `tiled` that suits most networks: a power of two, at most 64 and tile / 8."""
    largest = min(64, tile // 8, (tile - overlap) // 2)
    return 1 << (largest.bit_length() - 1) if largest > 0 else 1


def _weights(spans: list[tuple[int, int]], scale: int) -> list[Tensor]:
    """Compute the blending weights along one axis: for each tile one float64 per output pixel, summing to 1."""
    weights = []
    total = torch.zeros(spans[-1][1] * scale, dtype=torch.float64)
    for i, (start, stop) in enumerate(spans):
        length = (stop - start) * scale
        centers = torch.arange(length, dtype=torch.float64) + 0.5
        weight = torch.ones(length, dtype=torch.float64)
        if i > 0:
            weight *= _ramp(centers, (spans[i - 1][1] - start) * scale)
        if i + 1 < len(spans):
            weight *= _ramp(length - centers, (stop - spans[i + 1][0]) * scale)
        weights.append(weight)
        total[start * scale : stop * scale] += weight
    return [w / total[start * scale : stop * scale] for w, (start, stop) in zip(weights, spans, strict=True)]


def _ramp(depth: Tensor, overlap: int) -> Tensor:
    """Compute the weight at `depth` pixels from a cut.

    It is 0 in the first quarter of the overlap, follows a half cosine through the next half, and is 1 beyond.
    """
    if overlap == 0:
        return torch.ones_like(depth)
    t = ((depth - overlap / 4) / (overlap / 2)).clamp(0, 1)
    return 0.5 - 0.5 * torch.cos(math.pi * t)

"""Photographs of a folder as training data: tiles of 128 pixels, and whole photographs of moderate size."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import cv2
import numpy as np

from gmd_ray.errors import DataError
from gmd_ray.images.files.decode import decode_8bit
from gmd_ray.images.listing import list_images, read_file

log = logging.getLogger("gmd_ray")

TILE = 128
"""Side of a tile in pixels."""
FLAT = 6.0
"""Standard deviation in 8-bit levels below which a tile is left out: a clear sky teaches nothing."""
SCALES = (
    (600, ((1.0, 3), (0.5, 1))),
    (1_600, ((1.0, 5), (0.5, 3))),
    (None, ((0.5, 10), (0.25, 4))),
)
"""Longest side of a photograph -> scales at which it is cut, each with the most tiles taken at it.

Large photographs are cut at half and quarter size only, where noise and compression of their own no longer show."""
LARGE, LARGE_SCALE = 1_600, 0.4
"""A photograph whose longest side exceeds this is scaled by the second number where whole photographs are wanted."""
MOST_PHOTOGRAPHS = 2_000
"""The most photographs that are read; a larger folder gives a random choice."""
FEWEST_TILES = 400
"""The fewest tiles to train on: the scorer holds out 200."""


def list_photographs(folder: str, seed: int) -> list[str]:
    """List the photographs of a folder, those of its subfolders included, in order of their names.

    Raises:
        DataError: the folder is missing, or holds no image.
    """
    uris = [image.uri for image in list_images(folder)]
    if len(uris) > MOST_PHOTOGRAPHS:
        log.info("%s: %d photographs; a random %d of them are used", folder, len(uris), MOST_PHOTOGRAPHS)
        uris = sorted(random.Random(seed).sample(uris, MOST_PHOTOGRAPHS))
    return uris


def read_photographs(uris: list[str]) -> Iterator[np.ndarray]:
    """Decode photographs to uint8 RGB, (H, W, 3). One that cannot be decoded is left out with a warning."""
    for uri in uris:
        try:
            yield decode_8bit(read_file(uri))
        except DataError as error:
            log.warning("%s: left out: %s", uri, error)


def cut_folder(folder: str, seed: int, most: int) -> np.ndarray:
    """Cut the photographs of a folder into tiles, in random order.

    Args:
        most: the most tiles to keep.

    Returns:
        uint8 RGB, (tiles, 128, 128, 3).

    Raises:
        DataError: the folder is missing or has too few photographs.
    """
    rng = random.Random(seed)
    uris = list_photographs(folder, seed)
    tiles = [tile for image in read_photographs(uris) for tile in cut_photograph(image, rng)]
    if len(tiles) < FEWEST_TILES:
        raise DataError(
            f"{folder}: {len(tiles)} tiles of {TILE} pixels from {len(uris)} photographs, and training needs at least "
            f"{FEWEST_TILES}: give about 30 large photographs, or 100 of 500 pixels"
        )
    rng.shuffle(tiles)
    log.info("%s: %d of %d tiles from %d photographs", folder, min(most, len(tiles)), len(tiles), len(uris))
    return np.stack(tiles[:most])


def cut_photograph(image: np.ndarray, rng: random.Random) -> Iterator[np.ndarray]:
    """Cut tiles at the scales of `SCALES`."""
    longest = max(image.shape[:2])
    scales = next(scales for limit, scales in SCALES if limit is None or longest <= limit)
    for scale, most in scales:
        yield from cut_tiles(_scaled(image, scale), most, rng)


def cut_tiles(image: np.ndarray, most: int, rng: random.Random) -> list[np.ndarray]:
    """Cut at most so many tiles that are not flat, in random order, from a grid that spans the image.

    Along a side that holds one tile only, its place is random.
    """
    spans = [size - TILE for size in image.shape[:2]]
    if min(spans) < 0:
        return []
    counts = [size // TILE for size in image.shape[:2]]
    tops, lefts = (
        [round(i * span / (count - 1)) for i in range(count)] if count > 1 else [rng.randint(0, span)]
        for span, count in zip(spans, counts, strict=True)
    )
    places = [(top, left) for top in tops for left in lefts]
    rng.shuffle(places)
    kept: list[np.ndarray] = []
    for top, left in places:
        tile = image[top : top + TILE, left : left + TILE]
        if tile.std() >= FLAT:
            kept.append(tile.copy())  # a view would keep the whole photograph in memory
        if len(kept) >= most:
            break
    return kept


def moderate_photographs(folder: str, seed: int, most: int, shortest: int) -> list[np.ndarray]:
    """Read whole photographs, the large ones scaled down.

    Args:
        most: the most photographs to keep; of more, a random choice.
        shortest: photographs with a shorter side are left out.

    Returns:
        uint8 RGB, (H, W, 3) each, in order of their names.
    """
    uris = list_photographs(folder, seed)
    if len(uris) > most:
        uris = sorted(random.Random(seed).sample(uris, most))
    scaled = (_scaled(x, LARGE_SCALE if max(x.shape[:2]) > LARGE else 1) for x in read_photographs(uris))
    return [x for x in scaled if min(x.shape[:2]) >= shortest]


def _scaled(image: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return image
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)

"""Random training crops of a pair, the same for both of its images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class CropPlace(NamedTuple):
    """Position and orientation of a crop, in LQ pixels."""

    top: int
    left: int
    turn: int
    """Number of quarter turns (0 to 3), plus 4 for a horizontal flip before them; 0 leaves the crop as it is."""


def place(height: int, width: int, patch: int, flip: bool, rng: np.random.Generator) -> CropPlace:
    """Draw a crop of `patch` x `patch` in an LQ image of this size; it starts at 0 on an axis that is too short."""
    top = int(rng.integers(max(0, height - patch) + 1))
    left = int(rng.integers(max(0, width - patch) + 1))
    return CropPlace(top, left, int(rng.integers(8)) if flip else 0)


def cut(image: np.ndarray, where: CropPlace, patch: int, scale: int = 1) -> np.ndarray:
    """Cut a crop from one image of a pair, and turn it.

    Args:
        image: (H, W, C); the LQ image with `scale` 1, or the HQ image with the pair's scale.
        where: the crop, in LQ pixels.
        patch: side of the crop, in LQ pixels.
        scale: pixels of `image` for one LQ pixel.

    Returns:
        (patch * scale, patch * scale, C); an image that is too small is padded with its mirror image at the bottom and
        right.
    """
    side = patch * scale
    crop = image[where.top * scale : where.top * scale + side, where.left * scale : where.left * scale + side]
    lacking = (side - crop.shape[0], side - crop.shape[1])
    if any(lacking):
        # Mode "symmetric" repeats the edge pixel; "reflect" would misalign LQ and HQ at a scale above 1.
        crop = np.pad(crop, ((0, lacking[0]), (0, lacking[1]), (0, 0)), mode="symmetric")
    if where.turn >= 4:
        crop = crop[:, ::-1]
    return np.rot90(crop, where.turn % 4)

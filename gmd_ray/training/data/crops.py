"""Random training crops of a pair, the same for both of its images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class CropPlace(NamedTuple):
    """Where a crop lies and how it is turned; in LQ pixels."""

    top: int
    left: int
    turn: int
    """Quarter turns (0 to 3), plus 4 for a horizontal flip before them; 0 leaves the crop as it is."""


def place(height: int, width: int, patch: int, flip: bool, rng: np.random.Generator) -> CropPlace:
    """A crop of `patch` x `patch` in an LQ image of the given size; at 0 along an axis that is too short."""
    top = int(rng.integers(max(0, height - patch) + 1))
    left = int(rng.integers(max(0, width - patch) + 1))
    return CropPlace(top, left, int(rng.integers(8)) if flip else 0)


def cut(image: np.ndarray, where: CropPlace, patch: int, scale: int = 1) -> np.ndarray:
    """The crop of one image of a pair, turned.

    Args:
        image: (H, W, C); the LQ image, or the HQ image with its `scale`.
        patch: side in LQ pixels.

    Returns:
        (patch * scale, patch * scale, C); what the image lacks at the bottom and right is its mirror image.
    """
    side = patch * scale
    crop = image[where.top * scale : where.top * scale + side, where.left * scale : where.left * scale + side]
    lacking = (side - crop.shape[0], side - crop.shape[1])
    if any(lacking):
        # Mirrored with the edge doubled: only so do LQ and HQ stay aligned at a scale above 1.
        crop = np.pad(crop, ((0, lacking[0]), (0, lacking[1]), (0, 0)), mode="symmetric")
    if where.turn >= 4:
        crop = crop[:, ::-1]
    return np.rot90(crop, where.turn % 4)

"""Images of a store that are scored again, by another scorer or for a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gmd_ray.images.files.encode import decode_png
from gmd_ray.pairstore.view import StoreView

BLOCK = 16
"""Rows whose images are in memory at once."""


def scored_ids(view: StoreView) -> list[str]:
    """Ids of the rows that have a score and whose image is still an input, sorted."""
    return sorted({image for image, _ in view.scores()})


def read_images(view: StoreView, ids: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Read (photo, pseudo-target, score) of some rows; images are float32 RGB in [0, 1], (h, w, 3) and (H, W, 3).

    Raises:
        DataError: a part file that cannot be read.
    """
    for start in range(0, len(ids), BLOCK):
        block = ids[start : start + BLOCK]
        rows = view.rows_of(block, ["lq", "pseudo_target", "score"])
        for image in block:
            row = rows[image]
            yield decode_png(row["lq"]), decode_png(row["pseudo_target"]), float(row["score"])

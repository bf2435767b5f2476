"""Photos of a burst: many frames of one moment, which count for little more than one."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from gmd_ray.images.files.opening import opened_bytes
from gmd_ray.images.listing import ImageFile, read_file
from gmd_ray.planning.data_sets import Side
from gmd_ray.planning.findings import Findings
from gmd_ray.text import some

MOST = 1000
"""The most photos that are compared."""
PIXELS = 300_000_000
"""The most pixels that are decoded, which takes some seconds; JPEG decodes at an eighth of its size for a fraction."""
_SIDE = 32
_ALIKE = 6.0
"""Largest mean difference between two small gray pictures of one scene, in 8-bit levels without the brightness."""
_PLAIN = 12.0
"""Standard deviation, in 8-bit levels, below which a picture has too little in it to be compared."""
_WORTH_TELLING = 0.05


def check_bursts(found: Findings, side: Side) -> None:
    """Warn if many photos look like the next one by name.

    Pairs of neighbors, spread evenly over the folder, are compared as small gray pictures.
    """
    runs = _runs([i for i, header in enumerate(side.headers) if header.size is not None and not header.doubtful], side)
    looked_at = sorted({index for run in runs for index in run})
    with ThreadPoolExecutor(4) as pool:
        pictures = dict(zip(looked_at, pool.map(lambda i: _small(side.files[i]), looked_at), strict=True))
    copies = [
        (before, after)
        for run in runs
        for before, after in itertools.pairwise(run)
        if _alike(pictures[before], pictures[after])
    ]
    if len(copies) < max(2, _WORTH_TELLING * len(looked_at)):
        return
    names = [f"{side.files[before].id} and {side.files[after].id}" for before, after in copies]
    all_of_them = len(looked_at) == len(side.files)
    where = (
        f"the {len(looked_at):,} target photos"
        if all_of_them
        else (f"{len(looked_at):,} of the {len(side.files):,} target photos that were looked at")
    )
    found.warn(
        "near-copies",
        side.key,
        f"near-copies: of {where}, about {len(copies):,} look like the one before them by name, as in a burst "
        f"({some(names)}); they count for little more than one, in what is learned and in intervals",
    )


def _runs(indices: list[int], side: Side) -> list[list[int]]:
    """Groups of neighbors to compare: all photos as one group if that costs little, else pairs spread evenly."""
    most = min(MOST, len(indices))
    costs = [_cost(side, index) for index in indices]
    mean = sum(costs) / len(costs) if costs else 0.0
    if mean:
        most = min(most, max(2, int(PIXELS / mean)))
    if most == len(indices):
        return [indices]
    pairs = most // 2
    starts = [i * (len(indices) - 1) // pairs for i in range(pairs)]
    return [indices[start : start + 2] for start in starts]


def _cost(side: Side, index: int) -> float:
    size = side.headers[index].size
    assert size is not None
    share = 0.2 if side.files[index].uri.lower().endswith((".jpg", ".jpeg", ".jpe", ".jfif")) else 1.0
    return size[0] * size[1] * share


def _small(file: ImageFile) -> np.ndarray | None:
    """Decode a photo to float32 (32, 32) gray in [0, 255]; None if it cannot be decoded."""
    try:
        image = opened_bytes(read_file(file.uri)).image
        if image is None:
            return None
        image.draft("L", (_SIDE, _SIDE))
        return np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)
    except Exception:  # noqa: BLE001 -- decoders of damaged files raise anything; the run tells of them
        return None


def _alike(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    if first is None or second is None or min(first.std(), second.std()) < _PLAIN:
        return False
    return bool(np.abs((first - first.mean()) - (second - second.mean())).mean() < _ALIKE)

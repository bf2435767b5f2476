"""Drawing of the toy world's data sets as folders of PNG files, so that its run is one like any other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gmd_ray.demo.marker import is_made, mark
from gmd_ray.demo.toy import world
from gmd_ray.images.degradation.degradations import Degradation, sample_rng
from gmd_ray.images.files.encode import encode_png

log = logging.getLogger("gmd_ray")

SEVERE = Degradation(
    blur_prob=1, blur_sigma=(2.0, 3.2), noise_prob=1, noise_sigma=(35, 70), jpeg_prob=1, jpeg_quality=(12, 30)
)
"""Degradation of a few target photos that no student can restore, for the NIMA gate to reject."""


@dataclass
class WorldSize:
    """Numbers of images per folder."""

    seed: int = 100
    target: int = 200
    severe: int = 20
    """Number of target photos with the degradation `SEVERE`."""
    source: int = 400
    target_test: int = 150
    source_test: int = 75


def prepare(root: str | Path, size: WorldSize | None = None) -> None:
    """Write its folders under `root`, unless an earlier call has finished.

    Folders: `target_lq`, the photos to adapt to; `target_hq`, their ground truth, for the report alone; `source_lq` and
    `source_hq`; and the held-out `target_test_lq`, `target_test_hq`, `source_test_lq` and `source_test_hq`.

    Raises:
        DataError: `root` holds a world of another size or seed.
    """
    root, size = Path(root), size or WorldSize()
    if is_made(root, asdict(size)):
        return

    def target(index: int) -> Degradation:
        return SEVERE if index >= size.target - size.severe else world.TARGET

    log.info("drawing the toy world under %s", root)
    _pairs(root, "target_lq", "target_hq", "target", size.target, size.seed, target)
    _pairs(root, "source_lq", "source_hq", "source", size.source, size.seed, lambda _: world.SOURCE)
    _pairs(root, "target_test_lq", "target_test_hq", "target test", size.target_test, size.seed, lambda _: world.TARGET)
    _pairs(root, "source_test_lq", "source_test_hq", "source test", size.source_test, size.seed, lambda _: world.SOURCE)
    mark(root, asdict(size))


def _pairs(
    root: Path, lq: str, hq: str, split: str, count: int, seed: int, degradation: Callable[[int], Degradation]
) -> None:
    for folder in (lq, hq):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        clean = world.draw(seed, split, index)
        low: np.ndarray = degradation(index)(clean, sample_rng(seed, split, index, "lq"))
        (root / lq / f"{index:05d}.png").write_bytes(encode_png(low))
        (root / hq / f"{index:05d}.png").write_bytes(encode_png(clean))

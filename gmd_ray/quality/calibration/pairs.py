"""Scores of paired photos: the clean ones, and the same photos degraded."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np

from gmd_ray.config import Config
from gmd_ray.errors import ConfigError, DataError
from gmd_ray.images.degradation.degradations import Degradation, make_degradation, sample_rng
from gmd_ray.images.degradation.second_order import SecondOrder
from gmd_ray.images.files.encode import to_tensor
from gmd_ray.images.listing import ImageFile
from gmd_ray.images.sets.pairs import PairFile, load_image, load_pair
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.images.sizes import image_sizes
from gmd_ray.quality.protocol import Scorer

T = TypeVar("T")

View = tuple[int, int]
"""Shorter and longer side, in LQ pixels, that images are cut to at their centre before they are scored."""

SIZED = 32
"""Target photos whose headers are read for the view."""
UNSIZED: View = (512, 512)
"""The view where there is no target photo to take it from."""


@dataclass(frozen=True)
class PairedPhotos:
    """Pairs of a clean and a degraded photo, and how they are read."""

    name: str
    clean: str
    """Words for a better image of these pairs."""
    degraded: str
    """Words for a worse one."""
    files: tuple[PairFile, ...]
    gray: bool
    degradation: Degradation | SecondOrder | None = None
    """Makes the worse images where the pairs have no files of them."""
    seed: int = 0


@dataclass(frozen=True)
class ScoredPairs:
    """Scores of both images of each pair, in one order."""

    photos: PairedPhotos
    better: np.ndarray
    """(N,) float32 scores of the clean images; N is at least 1."""
    worse: np.ndarray
    """(N,) float32 scores of the degraded images."""
    left_out: int
    """Pairs that could not be read or scored."""
    reason: str
    """The error of the first of them; empty if there is none."""


def source_photos(cfg: Config, inputs: RunInputs) -> PairedPhotos:
    """List the source pairs, degraded as the fine-tune does it where there are no LQ files.

    Raises:
        ConfigError: the settings name no clean photos, or nothing that degrades them.
        DataError: a folder that cannot be listed, or images without partner.
    """
    s = cfg.source
    if not s.hq:
        raise ConfigError("source.hq is not set: there are no clean photos to score")
    if not s.lq and not s.degradation:
        raise ConfigError("source.lq is not set: give it, or source.degradation to make it")
    degradation = None if s.lq else make_degradation(s.degradation or "", s.degradation_args)
    files = inputs.pairs(s.hq, s.lq, s.lq_template, s.limit)
    return PairedPhotos("source", "clean photo", "degraded photo", tuple(files), s.gray, degradation, cfg.seed)


def held_out_photos(cfg: Config, inputs: RunInputs) -> PairedPhotos | None:
    """List the held-out target photos with their ground truth; None where the settings name none.

    Raises:
        DataError: a folder that cannot be listed, or images without partner.
    """
    e = cfg.evaluation
    if not e.target_hq or not e.target_lq:
        return None
    files = inputs.pairs(e.target_hq, e.target_lq, e.target_template, e.limit)
    return PairedPhotos("target test", "ground truth", "photo", tuple(files), cfg.target.gray)


def target_view(cfg: Config, photos: Sequence[ImageFile]) -> View:
    """Median size of some target photos, by their headers.

    Scores of most metrics depend on the size of the image. So all groups are cut to the size at which the gate sees
    the pseudo-targets.
    """
    sizes = [size for size in image_sizes(spread(photos, SIZED), cfg.target.max_pixels) if size is not None]
    if not sizes:
        return UNSIZED
    return int(statistics.median(map(min, sizes))), int(statistics.median(map(max, sizes)))


def score_pairs(
    scorer: Scorer,
    photos: PairedPhotos,
    view: View,
    limit: int,
    *,
    seconds: float = float("inf"),
    count: Callable[[], None] = lambda: None,
) -> ScoredPairs:
    """Score evenly spread pairs, one image at a time.

    Args:
        limit: the most pairs to score.
        seconds: no further pair is begun after this time.
        count: is called after each pair.

    Raises:
        DataError: none of the pairs can be read and scored; the message has the reason of the first.
    """
    start = time.monotonic()
    scores: list[tuple[float, float]] = []
    reasons: list[str] = []
    for pair in spread(photos.files, limit):
        if scores and time.monotonic() - start > seconds:
            break
        try:
            degraded, clean = read_pair(pair, photos, view)
            scores.append((score_image(scorer, clean), score_image(scorer, degraded)))
        except DataError as error:
            reasons.append(str(error))
        count()
    if not scores:
        raise DataError(f"none of {len(reasons)} {photos.name} pairs can be scored: {reasons[0]}")
    better, worse = np.array(scores, np.float32).T
    return ScoredPairs(photos, better, worse, len(reasons), reasons[0] if reasons else "")


def read_pair(pair: PairFile, photos: PairedPhotos, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Read a pair, cut to the view at its centre.

    Returns:
        (degraded, clean), float32 RGB in [0, 1] of one size (H, W, 3): a degraded image that is smaller by the scale
        is enlarged by bicubic interpolation.

    Raises:
        DataError: a file that cannot be read, or sizes that do not fit.
    """
    if pair.lq is None:
        assert photos.degradation is not None, "pairs without LQ files need a degradation"
        scale, whole = photos.degradation.scale, load_image(pair.hq, photos.gray)
        if min(whole.shape[:2]) < scale:
            raise DataError(f"{pair.hq}: too small to be degraded at scale {scale}")
        clean = _centre(whole, view, scale)
        degraded = photos.degradation(clean, sample_rng(photos.seed, pair.id, 0))
    else:
        degraded, whole = load_pair(pair, None, photos.gray, ())
        scale = whole.shape[0] // degraded.shape[0]
        degraded, clean = _centre(degraded, view, 1), _centre(whole, view, scale)
    return enlarged(degraded, clean.shape[:2]), clean


def enlarged(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize (h, w, 3) in [0, 1] to (height, width) by bicubic interpolation, unless it has that size."""
    if image.shape[:2] == tuple(size):
        return image
    height, width = size
    return np.clip(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def score_image(scorer: Scorer, image: np.ndarray) -> float:
    """Score one image, (H, W, 3) in [0, 1].

    Raises:
        DataError: it cannot be scored.
    """
    score = float(scorer.score(to_tensor([np.ascontiguousarray(image)]))[0])
    if not np.isfinite(score):
        raise DataError("the score is not a finite number")
    return score


def spread(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` items, evenly spaced over the sequence."""
    n = min(limit, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * n)] for i in range(n)]


def _centre(image: np.ndarray, view: Iterable[int], scale: int) -> np.ndarray:
    """Cut the centre of an image, upright or across as the image lies; both sides are multiples of the scale.

    An LQ image and its HQ image, larger by the scale, are cut to the same part of the photo.
    """
    height, width = (side // scale for side in image.shape[:2])
    short, long = sorted(view)
    tall, wide = (short, long) if height < width else (long, short)
    tall, wide = min(tall, height), min(wide, width)
    top, left = (height - tall) // 2 * scale, (width - wide) // 2 * scale
    return np.ascontiguousarray(image[top : top + tall * scale, left : left + wide * scale])

"""Random access to training crops: of the source pairs, and of the accepted pairs in the pair store."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from typing import Literal, Protocol

import cv2
import numpy as np

from gmd_ray.config import SourceConfig
from gmd_ray.errors import ConfigError, DataError
from gmd_ray.images.degradation.degradations import make_degradation, sample_rng
from gmd_ray.images.files.encode import decode_png
from gmd_ray.images.sets.pairs import PairFile, load_image, load_pair
from gmd_ray.pairstore.schema import accepted, rows_dataset
from gmd_ray.training.data.crops import CropPlace, cut, place
from gmd_ray.training.data.targets import AcceptedPairs

TargetColumn = Literal["pseudo_target", "restored"]

MARGIN = 16
"""LQ pixels around a crop that are degraded with it, so that blur and JPEG see the pixels beyond its border."""

ENCODED_IN_MEMORY = 512 << 20
"""Bytes of encoded target images that a worker keeps in memory; with more, all of them go to a temporary file."""

_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_PNG_TAIL = b"IEND\xaeB`\x82"


class Crops(Protocol):
    """Pairs that crops are cut from."""

    def crop(self, index: int, epoch: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Cut a crop of pair `index`.

        Args:
            index: number of the pair.
            epoch: earlier passes over the pairs; degradations are drawn anew in each.
            rng: draws position and orientation.

        Returns:
            (lq, hq), float32 RGB in [0, 1]: (patch, patch, 3) and (patch * scale, patch * scale, 3).
        """
        ...


class SourcePairs:
    """Crops of the source pairs, degraded on the fly if there are no LQ files.

    Args:
        cfg: how the images are read and degraded.
        pairs: from `list_pairs`.
        scale: HQ pixels for one LQ pixel, as the student has it.
        patch: side of the crops, in LQ pixels.
        flip: turn and flip crops at random.
        seed: seed of the run; a degradation is drawn from (seed, id, epoch).
        cache_bytes: bytes of decoded images kept in memory. The first images that fit are kept and never replaced:
            since each pass reads every image once in random order, replacing them would not give more hits.
    """

    def __init__(
        self,
        cfg: SourceConfig,
        pairs: Sequence[PairFile],
        *,
        scale: int,
        patch: int,
        flip: bool,
        seed: int,
        cache_bytes: int,
    ) -> None:
        self._cfg, self._pairs, self._scale, self._patch, self._flip, self._seed = cfg, pairs, scale, patch, flip, seed
        self._degradation = None
        if cfg.lq is None:
            self._degradation = make_degradation(cfg.degradation or "", cfg.degradation_args)
            if self._degradation.scale != scale:
                raise ConfigError(
                    f"source.degradation={cfg.degradation} has scale {self._degradation.scale}, "
                    f"the student's is {scale}: set source.degradation_args.scale={scale}"
                )
        self._cache: dict[int, tuple[np.ndarray | None, np.ndarray]] = {}
        self._room = cache_bytes
        self._lock = threading.Lock()

    def crop(self, index: int, epoch: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        lq, hq = self._images(index)
        if lq is None:
            return self._degraded_crop(hq, (self._seed, self._pairs[index].id, epoch), rng)
        height, width = lq.shape[:2]
        where = place(height, width, self._patch, self._flip, rng)
        return _floats(cut(lq, where, self._patch)), _floats(cut(hq, where, self._patch, self._scale))

    def _degraded_crop(
        self, hq: np.ndarray, key: tuple[object, ...], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        s, patch = self._scale, self._patch
        height, width = hq.shape[0] // s, hq.shape[1] // s
        where = place(height, width, patch, self._flip, rng)
        top, left = max(0, where.top - MARGIN), max(0, where.left - MARGIN)
        bottom, right = min(height, where.top + patch + MARGIN), min(width, where.left + patch + MARGIN)
        clean = np.ascontiguousarray(_floats(hq[top * s : bottom * s, left * s : right * s]))
        assert self._degradation is not None
        lq = self._degradation(clean, sample_rng(*key))
        within = CropPlace(where.top - top, where.left - left, where.turn)
        return cut(lq, within, patch), cut(clean, within, patch, s)

    def _images(self, index: int) -> tuple[np.ndarray | None, np.ndarray]:
        """The decoded images (lq or None, hq), in 8 bits if that loses nothing."""
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        pair = self._pairs[index]
        images: tuple[np.ndarray | None, np.ndarray]
        if pair.lq is None:
            images = None, _compact(_load(pair.hq, self._cfg.gray, self._scale))
        else:
            lq, hq = load_pair(pair, None, self._cfg.gray, (), self._scale)
            images = _compact(lq), _compact(hq)
        size = sum(image.nbytes for image in images if image is not None)
        with self._lock:
            if size <= self._room and index not in self._cache:
                self._room -= size
                self._cache[index] = images
        return images


class TargetPairs:
    """Crops of the accepted pairs: (lq, pseudo_target), or for controls (lq, median of restored) or (lq, ground truth).

    The encoded images are read once, in one pass over the store, and checked to be complete PNG files.

    Args:
        spec: the accepted pairs.
        scale: target pixels for one LQ pixel, as the student has it.
        patch: side of the crops, in LQ pixels.
        flip: turn and flip crops at random.
        gray: see `decode_image`; applies to ground truth.

    Raises:
        DataError: the images of a pair are missing or incomplete, or the store has changed since it was listed.
    """

    def __init__(self, spec: AcceptedPairs, *, scale: int, patch: int, flip: bool, gray: bool = False) -> None:
        self._pairs, self._scale, self._patch, self._flip, self._gray = spec, scale, patch, flip, gray
        self._file = tempfile.SpooledTemporaryFile(max_size=ENCODED_IN_MEMORY)  # noqa: SIM115 -- lives as long as this object
        self._lock = threading.Lock()
        places = {}
        column: TargetColumn | None = None if spec.truths else "restored" if spec.median else "pseudo_target"
        batches = rows_dataset(spec.store_url).to_batches(
            columns=["id", "lq", *([column] if column else [])],
            filter=accepted(spec.threshold, spec.higher_is_better, spec.removed_inputs, spec.fidelity),
            batch_size=16,
            fragment_readahead=1,
        )
        for batch in batches:
            for row in batch.to_pylist():
                places[row["id"]] = (
                    self._append(row["id"], row["lq"], "lq"),
                    self._append(row["id"], row[column], column) if column else None,
                )
        if places.keys() != set(spec.ids):
            raise DataError(f"{spec.store_url}: the accepted pairs changed after the run began; start it again")
        self._places = [places[key] for key in spec.ids]

    def crop(self, index: int, epoch: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        lq_place, target_place = self._places[index]
        lq = decode_png(self._read(*lq_place))
        if target_place is None:
            target = _load(self._pairs.truths[index], self._gray, self._scale)
        else:
            target = decode_png(self._read(*target_place))
        if self._pairs.median:
            target = median(target)
        height, width = lq.shape[:2]
        if target.shape[:2] != (height * self._scale, width * self._scale):
            raise DataError(
                f"pair {self._pairs.ids[index]}: lq is {width}x{height}, "
                f"its target {target.shape[1]}x{target.shape[0]}; the student's scale is {self._scale}"
            )
        where = place(height, width, self._patch, self._flip, rng)
        return cut(lq, where, self._patch), cut(target, where, self._patch, self._scale)

    def _append(self, key: str, data: bytes | None, column: str) -> tuple[int, int]:
        if data is None or not (data.startswith(_PNG_HEAD) and data.endswith(_PNG_TAIL)):
            raise DataError(
                f"{self._pairs.store_url}: pair {key} has no complete PNG in column {column}; generate it again"
            )
        start = self._file.tell()
        self._file.write(data)
        return start, len(data)

    def _read(self, start: int, size: int) -> bytes:
        with self._lock:
            self._file.seek(start)
            return self._file.read(size)


def median(image: np.ndarray) -> np.ndarray:
    """The 3x3 median of each channel, computed on 8 bits; float32 (H, W, 3) in [0, 1] in and out."""
    return cv2.medianBlur(np.rint(image * 255).astype(np.uint8), 3).astype(np.float32) / 255


def _load(uri: str, gray: bool, scale: int) -> np.ndarray:
    image = load_image(uri, gray)
    if min(image.shape[:2]) < scale:
        raise DataError(f"{uri}: {image.shape[1]}x{image.shape[0]} is too small to be degraded at scale {scale}")
    return image


def _compact(image: np.ndarray) -> np.ndarray:
    """A float32 image in [0, 1] as uint8, if `_floats` restores exactly the same values; else the image itself."""
    pixels = np.rint(image * 255).astype(np.uint8)
    return pixels if np.array_equal(_floats(pixels), image) else image


def _floats(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / 255 if image.dtype == np.uint8 else image

"""Making a study: pairs whose sides are random and balanced, attention checks, and pictures that tell nothing.

Each picture is written anew for each pair, from its pixels alone, under a random name; files have one time, and pairs
and files are written in random order. So neither names, metadata nor order tell which method made a picture.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from gmd_ray.errors import ConfigError, DataError
from gmd_ray.images.files.encode import encode_png
from gmd_ray.study.folder import (
    COMPARISON,
    DEGRADED,
    REPEATED,
    KeyPair,
    Study,
    StudyKey,
    StudyPair,
    private_folder,
    write_study,
)
from gmd_ray.study.instructions import TEXTS, Instructions
from gmd_ray.study.sources import Methods, check_methods
from gmd_ray.text import printable

_TIME = 1_000_000_000
"""Time of the last change of every picture, in seconds since 1970."""
_SHRINK, _NOISE = 6, 24.0
"""A degraded copy is made at 1/6 of its size and enlarged again, with noise of this standard deviation (of 255)."""


@dataclass(frozen=True)
class StudyPlan:
    """Choices that a study is made with."""

    title: str = "Picture comparison"
    instructions: Instructions = TEXTS["restoration"]
    seed: int | None = None
    """Seed of everything random; None draws one. Whoever knows it can tell the methods apart."""
    limit: int | None = None
    """Number of photos to draw; None takes all."""
    crop: int | None = None
    """Side of the square that is shown of the middle of each photo, in pixels; None shows whole photos."""
    degraded: int = 4
    """Number of pairs of a picture and an obviously degraded copy of it."""
    repeated: int = 4
    """Number of comparisons that come twice, with their sides swapped."""


def create_study(methods: Methods, out: str | Path, plan: StudyPlan | None = None) -> Study:
    """Write a study of every two methods on every photo.

    Args:
        methods: the pictures; those of one photo must have one size.
        out: folder to make.
        plan: further choices.

    Raises:
        ConfigError: fewer than two methods, a number that cannot be met, or `out` already holds a study.
        DataError: pictures are missing, unreadable, or of different sizes.
    """
    plan = plan or StudyPlan()
    folder = Path(out)
    if (folder / "public").exists() or (folder / "private").exists():
        raise ConfigError(f"{folder}: holds a study already, with its answers; give another folder")
    photos = check_methods(methods)
    seed = secrets.randbits(63) if plan.seed is None else plan.seed
    if seed < 0:
        raise ConfigError(f"--seed {seed}: give 0 or more")
    rng = np.random.default_rng(seed)
    if plan.limit is not None and plan.limit < len(photos):
        photos = sorted(rng.permutation(photos)[: plan.limit].tolist())
    pairs = _comparisons(rng, tuple(methods), photos)
    degraded = _degraded_pairs(rng, tuple(methods), photos, plan.degraded)
    repeated = _repeated_pairs(rng, pairs, plan.repeated)
    everything = {**pairs, **degraded, **repeated}
    order = rng.permutation(sorted(everything)).tolist()
    private = private_folder(folder)
    pictures = folder / "public" / "pictures"
    pictures.mkdir(parents=True)
    try:
        shown = tuple(_written(rng, methods, pair, everything[pair], pictures, plan.crop) for pair in order)
        text = plan.instructions
        study = Study(_digits(rng), plan.title, text.question, text.paragraphs, shown, folder)
        write_study(study, StudyKey(study.id, seed, tuple(methods), everything))
    except BaseException:
        for half_made in (private, folder / "public"):
            shutil.rmtree(half_made, ignore_errors=True)
        raise
    return study


def _digits(rng: np.random.Generator) -> str:
    return rng.bytes(8).hex()


def _sides(rng: np.random.Generator, count: int) -> list[bool]:
    """Equally many of both, in random order; an odd one is random."""
    sides = [i % 2 == 0 for i in range(count)]
    if count % 2 and rng.random() < 0.5:
        sides[-1] = not sides[-1]
    return [sides[i] for i in rng.permutation(count)]


def _comparisons(rng: np.random.Generator, methods: tuple[str, ...], photos: list[str]) -> dict[str, KeyPair]:
    pairs = {}
    for one, other in itertools.combinations(methods, 2):
        for photo, first in zip(photos, _sides(rng, len(photos)), strict=True):
            left, right = (one, other) if first else (other, one)
            pairs[_digits(rng)] = KeyPair(COMPARISON, photo, left, right)
    return pairs


def _degraded_pairs(
    rng: np.random.Generator, methods: tuple[str, ...], photos: list[str], count: int
) -> dict[str, KeyPair]:
    pairs = {}
    chosen = itertools.islice(itertools.cycle(rng.permutation(photos).tolist()), count)
    makers = itertools.cycle(rng.permutation(methods).tolist())
    for photo, method, first in zip(chosen, makers, _sides(rng, count), strict=False):
        left, right = (method, DEGRADED) if first else (DEGRADED, method)
        pairs[_digits(rng)] = KeyPair(DEGRADED, photo, left, right)
    return pairs


def _repeated_pairs(rng: np.random.Generator, pairs: dict[str, KeyPair], count: int) -> dict[str, KeyPair]:
    chosen = rng.permutation(sorted(pairs))[:count].tolist()
    return {_digits(rng): KeyPair(REPEATED, pairs[i].photo, pairs[i].right, pairs[i].left, of=i) for i in chosen}


def _written(
    rng: np.random.Generator, methods: Methods, pair: str, facts: KeyPair, pictures: Path, crop: int | None
) -> StudyPair:
    """Write the two pictures of a pair."""
    makers = facts.left, facts.right
    images = dict(_images(methods, facts, crop))
    if DEGRADED in makers:
        (whole,) = images.values()
        images[DEGRADED] = _degraded_copy(rng, whole)
    left, right = (images[maker] for maker in makers)
    if left.shape != right.shape:
        sizes = " and ".join(f"{maker} {images[maker].shape[1]}x{images[maker].shape[0]}" for maker in makers)
        raise DataError(f"{printable(facts.photo)}: {sizes}; a pair needs one size, for the size would tell the method")
    files = {f"{_digits(rng)}.png": image for image in (left, right)}
    left_name, right_name = files
    for name, image in sorted(files.items(), key=lambda file: file[0]):
        path = pictures / name
        path.write_bytes(encode_png(image, 6))
        os.utime(path, (_TIME, _TIME))
    return StudyPair(pair, left_name, right_name, width=left.shape[1], height=left.shape[0])


def _images(methods: Methods, facts: KeyPair, crop: int | None) -> Iterator[tuple[str, np.ndarray]]:
    for maker in (facts.left, facts.right):
        if facts.kind == DEGRADED and maker == DEGRADED:
            continue
        image = methods[maker][facts.photo]()
        if crop is not None:
            height, width = image.shape[:2]
            top, start = max(0, height - crop) // 2, max(0, width - crop) // 2
            image = image[top : top + crop, start : start + crop]
        yield maker, np.ascontiguousarray(image)


def _degraded_copy(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(1, width // _SHRINK), max(1, height // _SHRINK)), interpolation=cv2.INTER_AREA)
    blurred = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float64)
    return np.clip(np.rint(blurred + rng.normal(0, _NOISE, blurred.shape)), 0, 255).astype(np.uint8)

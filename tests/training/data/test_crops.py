"""Paired crops."""

from __future__ import annotations

import numpy as np
import pytest

from gmd_ray.training.data.crops import CropPlace, cut, place


def _coordinates(height: int, width: int) -> np.ndarray:
    """An image whose pixels hold their own place."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.float32)


@pytest.mark.parametrize("size", [(20, 30), (8, 8), (5, 30), (30, 3), (1, 1)])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_lq_and_hq_crops_show_the_same_part(size: tuple[int, int], scale: int) -> None:
    height, width = size
    lq = _coordinates(height, width)
    hq = lq.repeat(scale, axis=0).repeat(scale, axis=1)
    rng = np.random.default_rng(0)
    turns = set()
    for _ in range(64):
        where = place(height, width, 8, True, rng)
        turns.add(where.turn)
        small, large = cut(lq, where, 8), cut(hq, where, 8, scale)
        assert small.shape == (8, 8, 3)
        assert np.array_equal(small.repeat(scale, axis=0).repeat(scale, axis=1), large)
    assert turns == set(range(8))


def test_the_eight_turns_are_the_symmetries_of_the_square() -> None:
    image = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    images = {cut(image, CropPlace(0, 0, turn), 2).tobytes() for turn in range(8)}
    assert len(images) == 8
    assert np.array_equal(cut(image, CropPlace(0, 0, 0), 2), image)
    assert np.array_equal(cut(image, CropPlace(0, 0, 4), 2), image[:, ::-1])
    assert np.array_equal(cut(image, CropPlace(0, 0, 2), 2), image[::-1, ::-1])


def test_crops_reach_every_place_and_none_beyond() -> None:
    rng = np.random.default_rng(0)
    corners = {place(10, 9, 8, False, rng)[:2] for _ in range(200)}
    assert corners == {(top, left) for top in range(3) for left in range(2)}


def test_what_is_lacking_is_mirrored() -> None:
    image = _coordinates(3, 8)
    crop = cut(image, CropPlace(0, 0, 0), 8)
    assert crop[:, 0, 0].tolist() == [0, 1, 2, 2, 1, 0, 0, 1]

"""Tiles of photographs: cut as the script did, in a fixed order, and refused where they are too few."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import numpy as np
import pytest

from gmd_ray.demo.photos import tiles
from gmd_ray.demo.train_models import TrainingBudget, train_models
from gmd_ray.errors import ConfigError, DataError
from gmd_ray.images.files.encode import encode_png


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(300, 420), (128, 500), (200, 200), (127, 400)])
def test_tiles_are_those_of_the_script(shared_data: Path, size: tuple[int, int]) -> None:
    script = shared_data.parent / "photo_world/pack.py"
    if not script.is_file():
        pytest.skip("no script here")
    parts = [node for node in ast.parse(script.read_text()).body if getattr(node, "name", "") == "tiles"]
    names = {"T": tiles.TILE, "rng": random.Random(3)}
    exec(compile(ast.Module(parts, []), "pack", "exec"), names)
    image = picture(*size)
    image[:, :128] = 90  # flat, so that some tiles are left out
    theirs = names["tiles"](image, 4)
    ours = tiles.cut_tiles(image, 4, random.Random(3))
    assert len(ours) == len(theirs)
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_flat_tiles_are_left_out() -> None:
    image = np.full((256, 256, 3), 90, np.uint8)
    assert tiles.cut_tiles(image, 9, random.Random(0)) == []
    image[:128, :128] = picture(128, 128)
    assert len(tiles.cut_tiles(image, 9, random.Random(0))) == 1


def test_large_photographs_are_cut_at_half_and_quarter_size() -> None:
    cut = [list(tiles.cut_photograph(picture(*size), random.Random(0))) for size in ((300, 500), (700, 900))]
    assert [len(c) for c in cut] == [3 + 1, 5 + 3]
    whole, half = (float(c.std()) for c in (cut[1][0], cut[1][-1]))
    assert half < 0.7 * whole, "averages of four random pixels"


def test_a_folder_gives_the_same_tiles_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        (tmp_path / f"{seed}.png").write_bytes(encode_png(picture(300, 420, seed).astype(np.float32) / 255))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    monkeypatch.setattr(tiles, "FEWEST_TILES", 10)
    first, again = (tiles.cut_folder(str(tmp_path), 0, 12) for _ in range(2))
    assert first.shape == (12, 128, 128, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, tiles.cut_folder(str(tmp_path), 1, 12))
    assert [x.shape for x in tiles.moderate_photographs(str(tmp_path), 0, 9, 48)] == [(300, 420, 3)] * 4
    assert len(tiles.moderate_photographs(str(tmp_path), 0, 2, 48)) <= 2


def test_too_few_photographs_are_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(picture(300, 420).astype(np.float32) / 255))
    with pytest.raises(DataError, match=r"4 tiles of 128 pixels from 1 photographs, and training needs at least 400"):
        train_models(tmp_path / "to", photos=str(tmp_path))
    assert not (tmp_path / "to").exists()


def test_arguments_that_do_not_belong_to_the_world_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--photos DIR"):
        train_models(tmp_path)
    with pytest.raises(ConfigError, match="go with --world photos"):
        train_models(tmp_path, "toy", budget=TrainingBudget(steps=3))
    with pytest.raises(ConfigError, match="--device"):
        train_models(tmp_path, photos=str(tmp_path), device="tpu9")

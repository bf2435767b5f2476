"""Sizes of images from their headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmd_ray.images.listing import list_images
from gmd_ray.images.sizes import image_sizes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in {"a.png": (30, 20), "b.jpg": (7, 9), "c.webp": (5, 5), "d.tif": (4, 8), "e.bmp": (3, 2)}.items():
        Image.fromarray(np.zeros((*size[::-1], 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "f.png").write_bytes(b"")
    (tmp_path / "g.png").write_text("not an image")
    return tmp_path


def test_every_kind(folder: Path) -> None:
    sizes = image_sizes(list_images(str(folder)), max_pixels=100_000)
    assert sizes == [(20, 30), (9, 7), (5, 5), (8, 4), (2, 3), None, None]


def test_the_preview_of_a_raw_file_is_no_size(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / "a.nef", "TIFF")
    assert image_sizes(list_images(str(tmp_path)), max_pixels=100_000) == [None]


def test_what_is_too_large_will_fail(folder: Path) -> None:
    assert image_sizes(list_images(str(folder), 2), max_pixels=100) == [None, (9, 7)]


def test_pixels_are_not_read(tmp_path: Path) -> None:
    """A file that consists of nothing but its header has a size."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    assert image_sizes(list_images(str(tmp_path)), max_pixels=100_000) == [(64, 48)]


def test_other_filesystems(folder: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/sizes/a.png", (folder / "a.png").read_bytes())
    assert image_sizes(list_images("memory://sizes"), max_pixels=100_000) == [(20, 30)]
    memory.rm("/sizes", recursive=True)

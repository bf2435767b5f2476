"""Pictures within a number of bytes."""

from __future__ import annotations

import numpy as np

from gmd_ray.images.files.encode import encode_png
from gmd_ray.report.encode import encode_pictures
from gmd_ray.report.gallery import Gallery, ShownPhoto, fit
from tests.report.page import picture

RNG = np.random.default_rng(0)
NOISE = [RNG.integers(0, 256, (40, 60, 3), np.uint8) for _ in range(6)]
PNGS = [encode_png(image) for image in NOISE]


def test_without_loss_where_there_is_room() -> None:
    uris = encode_pictures([*PNGS, PNGS[0]])
    assert uris is not None
    assert len(uris) == 6
    for png, image in zip(PNGS, NOISE, strict=True):
        assert (picture(uris[png]) == image).all()


def test_the_best_quality_that_fits_is_taken() -> None:
    sizes = {}
    for budget in (70_000, 40_000, 25_000):
        uris = encode_pictures(PNGS, budget)
        assert uris is not None
        sizes[budget] = sum(map(len, uris.values()))
        assert sizes[budget] <= budget
        assert all(uri.startswith("data:image/jpeg;base64,") for uri in uris.values()) == (budget < 70_000)
    assert sizes[70_000] > sizes[40_000] > sizes[25_000]
    assert encode_pictures(PNGS, 5_000) is None


def test_long_galleries_are_cut_until_all_fit() -> None:
    photos = [ShownPhoto(str(i), {"lq": png}, "lq", "lq") for i, png in enumerate(PNGS)]
    galleries = [Gallery("long", "", photos[:5]), Gallery("short", "", photos[5:]), Gallery("none", "", []),
                 Gallery("says", "", [], "Nothing.")]  # fmt: skip
    assert encode_pictures(PNGS, 16_000) is None
    kept, uris = fit(galleries, 16_000)
    assert [(gallery.title, [photo.id for photo in gallery.photos]) for gallery in kept] == [
        ("long", ["0", "1"]), ("short", ["5"]), ("says", []),
    ]  # fmt: skip
    assert set(uris) == {PNGS[0], PNGS[1], PNGS[5]}
    assert sum(map(len, uris.values())) <= 16_000

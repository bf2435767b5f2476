"""Names of results: one for each photo, in a format that holds it, within the folder."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from gmd_ray.errors import ConfigError, DataError
from gmd_ray.images.files.photo import FORMATS
from gmd_ray.images.results import LARGEST_SIDE, Naming, name_results


def test_each_photos_own_kind_where_it_can_be_written() -> None:
    names = {"a.JPG": "a.JPG", "b/c.jfif": "b/c.jfif", "d.avif": "d.png", "e.gif": "e.png", "f.nef": "f.png"}
    assert name_results([*names], Naming()) == names
    assert name_results(["b/c.jfif", "e.gif"], Naming("_x4")) == {"b/c.jfif": "b/c_x4.jfif", "e.gif": "e_x4.png"}


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (["x.gif", "x.png"], ["x.gif.png", "x.png"]),
        (["x.png", "x.gif"], ["x.png", "x.gif.png"]),
        (["x.gif", "x.avif"], ["x.gif.png", "x.avif.png"]),
        (["x.gif", "x.avif", "x.png", "y.gif"], ["x.gif.png", "x.avif.png", "x.png", "y.png"]),
        (["a/x.gif", "b/x.gif"], ["a/x.png", "b/x.png"]),
        (["x.jpg", "x.png"], ["x.jpg", "x.png"]),
    ],
)
def test_two_photos_of_one_stem_both_get_a_name(ids: list[str], names: list[str]) -> None:
    assert [*name_results(ids, Naming()).values()] == names
    suffixed = [*name_results(ids, Naming("_r")).values()]
    assert len({*suffixed}) == len(ids)
    assert all("_r.png" in name or "_r.jpg" in name for name in suffixed)


def test_what_still_collides_is_named() -> None:
    with pytest.raises(ConfigError, match=r"x\.gif, x\.gif\.png would all be written to x\.gif\.png: rename one"):
        name_results(["x.gif", "x.gif.png", "x.png"], Naming())
    with pytest.raises(ConfigError, match=r"x\.gif, x\.png would all be written to x\.jpg: .*leave out --ext"):
        name_results(["x.gif", "x.png"], Naming(ext="jpg"))


@pytest.mark.parametrize(
    ("ending", "size", "scale", "fits"),
    [
        ("webp", (2, 16383), 1, True),
        ("webp", (2, 4095), 4, True),
        ("webp", (2, 4096), 4, False),
        ("webp", (4100, 2), 4, False),
        ("jpg", (2, 16375), 4, True),
        ("jpg", (2, 16376), 4, False),
        ("JPEG", (16376, 2), 4, False),
        ("png", (2, 40_000), 4, True),
        ("tif", (2, 40_000), 4, True),
    ],
)
def test_a_result_too_large_for_its_format_is_a_png_or_refused(
    ending: str, size: tuple[int, int], scale: int, fits: bool
) -> None:
    key = f"wide.{ending}"
    [name] = name_results([key], Naming(), scale, {key: size}).values()
    assert name == (key if fits else "wide.png")
    if fits:
        name_results(["a.png"], Naming(ext=ending), scale, {"a.png": size})
    else:
        with pytest.raises(ConfigError, match=rf"--ext {ending}: a\.png would be more than .* at x{scale}"):
            name_results(["a.png"], Naming(ext=ending), scale, {"a.png": size})


def test_a_png_in_place_of_a_large_webp_leaves_its_neighbour_alone() -> None:
    names = name_results(["wide.webp", "wide.png"], Naming(), 4, {"wide.webp": (2, 4100), "wide.png": (2, 4100)})
    assert names == {"wide.webp": "wide.webp.png", "wide.png": "wide.png"}


@pytest.mark.parametrize("ending", [".jpg", ".webp"])
def test_the_bounds_are_those_of_the_encoders(ending: str) -> None:
    kind = FORMATS[ending]
    Image.new("L", (LARGEST_SIDE[kind], 1)).save(io.BytesIO(), kind)
    with pytest.raises((OSError, ValueError)):
        Image.new("L", (LARGEST_SIDE[kind] + 1, 1)).save(io.BytesIO(), kind)


@pytest.mark.parametrize("suffix", ["/x", "../", "a/b", "\\x", "\0", "x\n", "\x1b[2J"])
def test_a_suffix_that_is_no_part_of_a_name_is_one_line(suffix: str) -> None:
    with pytest.raises(ConfigError, match="--suffix") as caught:
        Naming(suffix)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("ext", ["", ".", "../x", "gif", "jp g", "png/", "\x1b", "png.jpg"])
def test_an_ending_that_cannot_be_written_is_one_line(ext: str) -> None:
    with pytest.raises(ConfigError, match=r"--ext .*known: auto, png, jpg") as caught:
        Naming(ext=ext)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("ext", ["png", ".png", "PNG", ".PNG"])
def test_an_ending_may_have_its_dot_and_capitals(ext: str) -> None:
    assert name_results(["x.webp"], Naming(ext=ext)) == {"x.webp": "x.png"}


@pytest.mark.parametrize("key", ["../x.png", "/etc/x.png", "a/../../x.png", "..\\x.png"])
def test_an_id_never_leads_out_of_the_folder(key: str) -> None:
    with pytest.raises(DataError, match="is not a path below its folder"):
        name_results(["ok.png", key], Naming())

"""Pairing by relative stem, and loading what was paired."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gmd_ray.errors import ConfigError, DataError
from gmd_ray.images.degradation.degradations import Degradation, make_degradation, sample_rng
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.encode import encode_png
from gmd_ray.images.sets.pairs import PairFile, list_pairs, list_truths, load_pair


def write(root: Path, *names: str, size: tuple[int, int] = (8, 12)) -> str:
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.random.default_rng(i).random((*size, 3), dtype=np.float32)))
    return str(root)


def partners(pairs: list[PairFile], lq: str) -> dict[str, str]:
    return {pair.id: str(Path(pair.lq or "").relative_to(lq)) for pair in pairs}


@pytest.mark.parametrize(
    ("template", "lq_names"),
    [
        ("{}", ["a.png", "city/a.jpg", "city/b {0}.png"]),
        ("{}x4", ["ax4.png", "city/ax4.jpg", "city/b {0}x4.png"]),
        ("lr_{}_v1.5", ["lr_a_v1.5.png", "city/lr_a_v1.5.jpg", "city/lr_b {0}_v1.5.png"]),
        ("X4/{}", ["X4/a.png", "X4/city/a.jpg", "X4/city/b {0}.png"]),
    ],
)
def test_by_relative_stem_and_template(tmp_path: Path, template: str, lq_names: list[str]) -> None:
    hq = write(tmp_path / "hq", "a.png", "city/a.png", "city/b {0}.bmp")
    lq = write(tmp_path / "lq", *lq_names)
    pairs = list_pairs(hq, lq, template)
    assert partners(pairs, lq) == dict(zip(["a.png", "city/a.png", "city/b {0}.bmp"], lq_names, strict=True))
    assert [pair.id for pair in pairs] == sorted(pair.id for pair in pairs)
    assert [Path(pair.hq).relative_to(hq).as_posix() for pair in pairs] == [pair.id for pair in pairs]
    assert list_pairs(hq, lq, template, limit=2) == pairs[:2]


def test_names_with_dots_keep_all_but_the_extension(tmp_path: Path) -> None:
    hq = write(tmp_path / "hq", "v1.0.png", "v1.1.png")
    lq = write(tmp_path / "lq", "v1.0.jpg", "v1.1.jpg")
    assert partners(list_pairs(hq, lq), lq) == {"v1.0.png": "v1.0.jpg", "v1.1.png": "v1.1.jpg"}


def test_without_lq_folder(tmp_path: Path) -> None:
    hq = write(tmp_path / "hq", "b.png", "a.png")
    assert [(pair.id, pair.lq) for pair in list_pairs(hq, None)] == [("a.png", None), ("b.png", None)]
    assert len(list_pairs(hq, None, limit=1)) == 1


def test_missing_partners_are_named_on_both_sides(tmp_path: Path) -> None:
    hq = write(tmp_path / "hq", *(f"{i}.png" for i in range(8)))
    lq = write(tmp_path / "lq", "0.png", "1.png", "2.png", "sub/3.png")
    with pytest.raises(DataError) as caught:
        list_pairs(hq, lq)
    text = str(caught.value)
    assert f"5 of 8 images in {hq} have no partner in {lq} (3.png, 4.png, 5.png, ...)" in text
    assert f"1 of 4 in {lq} have none in {hq} (sub/3.png)" in text
    assert "\n" not in text


def test_two_files_of_one_stem(tmp_path: Path) -> None:
    hq = write(tmp_path / "hq", "a.png", "a.jpg")
    lq = write(tmp_path / "lq", "a.png")
    with pytest.raises(DataError, match=r"a\.jpg and a\.png share a name"):
        list_pairs(hq, lq)
    with pytest.raises(DataError, match="share a name"):
        list_pairs(lq, hq)


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(("ours", "theirs"), [(nfc, nfd), (nfd, nfc), (nfd, nfd)])
def test_names_that_look_the_same_are_the_same(
    ours: Callable[[str], str], theirs: Callable[[str], str], tmp_path: Path
) -> None:
    """Names with accents match in any normal form: macOS stores an accent apart from its letter."""
    names = ["Grüße.png", "Ångström/naïve.png", "각.png"]
    hq = write(tmp_path / "hq", *map(ours, names))
    lq = write(tmp_path / "lq", *(theirs(name.replace(".png", "é.png")) for name in names))
    for template in ("{}é", nfd("{}é")):
        pairs = list_pairs(hq, lq, template)
        assert {pair.id for pair in pairs} == set(map(ours, names))  # ids stay as they are on the disk
        for pair in pairs:
            assert nfc(str(Path(pair.lq or "").relative_to(lq))) == nfc(pair.id).replace(".png", "é.png")
            load_pair(pair, None, False, ())
    truths = list_truths(hq, [theirs(name).replace(".png", ".jpg") for name in names], "training.supervised_hq")
    assert truths == [f"{hq}/{ours(name)}" for name in names]


def test_files_that_are_not_decoded_are_no_pairs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hq = write(tmp_path / "hq", "a.png", "b.png")
    lq = write(tmp_path / "lq", "a.png", "b.png")
    for folder in ("hq", "lq"):
        for name in ("x.cr3", "x.jxl"):
            (tmp_path / folder / name).write_bytes(b"")
    assert [pair.id for pair in list_pairs(hq, lq)] == ["a.png", "b.png"]
    assert [pair.id for pair in list_pairs(hq, None, limit=3)] == ["a.png", "b.png"]
    assert f"{hq}: 2 files are left out of its pairs (x.cr3: a Canon raw file (CR3), which" in caplog.text
    (tmp_path / "lq" / "b.png").rename(tmp_path / "lq" / "b.heic")
    with pytest.raises(DataError, match=r"1 of 2 images in \S+ have no partner in \S+ \(b\.png\)"):
        list_pairs(hq, lq)
    for name in ("a.png", "b.png"):
        (tmp_path / "hq" / name).unlink()
    with pytest.raises(DataError, match="no image that this program decodes among 2"):
        list_pairs(hq, None)


def test_two_names_of_one_folder_that_look_the_same(tmp_path: Path) -> None:
    hq = write(tmp_path / "hq", nfc("é.png"), nfd("é.png"))
    if len(list((tmp_path / "hq").iterdir())) < 2:
        pytest.skip("this file system normalises names")
    lq = write(tmp_path / "lq", "é.png")
    with pytest.raises(DataError, match=r"'e\\u0301\.png' and '\\xe9\.png' share a name"):
        list_pairs(hq, lq)


def test_a_clean_image_linked_under_several_names_pairs_with_each(tmp_path: Path) -> None:
    """Several degradations of one photo, whose clean side is a link: listings leave links out, pairs need them."""
    hq = write(tmp_path / "hq", "a.png", "clip/b.png")
    (tmp_path / "hq" / "a2.png").symlink_to("a.png")
    (tmp_path / "hq" / "again").symlink_to("clip")
    lq = write(tmp_path / "lq", "a.png", "a2.png", "clip/b.png", "again/b.png")
    pairs = list_pairs(hq, lq)
    assert [pair.id for pair in pairs] == ["a.png", "a2.png", "again/b.png", "clip/b.png"]
    assert Path(pairs[1].hq).read_bytes() == (tmp_path / "hq" / "a.png").read_bytes()
    assert len(list_pairs(lq, hq)) == 4
    assert list_truths(hq, ["a2.jpg", "again/b.png"], "x") == [f"{hq}/a2.png", f"{hq}/again/b.png"]


def test_a_link_to_the_latest_needs_no_partner(tmp_path: Path) -> None:
    hq = write(tmp_path / "hq", "a.png", "run1/b.png")
    (tmp_path / "hq" / "latest").symlink_to("run1")
    (tmp_path / "hq" / "loop").symlink_to(".")
    lq = write(tmp_path / "lq", "a.png", "run1/b.png")
    (tmp_path / "lq" / "self").symlink_to(tmp_path / "lq")
    assert [pair.id for pair in list_pairs(hq, lq)] == ["a.png", "run1/b.png"]
    for folder in (tmp_path / "hq", tmp_path / "lq"):
        (folder / "both.png").symlink_to("a.png")
    assert [pair.id for pair in list_pairs(hq, lq)] == ["a.png", "run1/b.png"]  # the same pair again


def test_shared_input_nfc_nfd() -> None:
    folder = Path(__file__).parents[3].parent / "shared" / "inputs" / "nfc_nfd"
    if not folder.is_dir():
        pytest.skip("shared inputs are not here")
    assert len(list_pairs(str(folder / "hq"), str(folder / "lq"))) == 1


@pytest.mark.parametrize("template", ["x4", "{}{}", "{}/x", "{}/{}", ""])
def test_template_needs_one_placeholder(tmp_path: Path, template: str) -> None:
    with pytest.raises(ConfigError, match="template"):
        list_pairs(str(tmp_path), str(tmp_path), template)


def test_loads_both_files_and_checks_their_sizes(tmp_path: Path) -> None:
    hq = write(tmp_path / "hq", "a.png", size=(16, 24))
    lq = write(tmp_path / "lq", "a.png", size=(8, 12))
    [pair] = list_pairs(hq, lq)
    for scale in (None, 2):
        low, high = load_pair(pair, None, False, (), scale)
        assert low.shape == (8, 12, 3)
        assert high.shape == (16, 24, 3)
        assert np.array_equal(high, decode_image(Path(pair.hq).read_bytes()))
    with pytest.raises(DataError, match=r"pair a\.png: hq is 24x16, lq 12x8; hq has to be 4 times as large"):
        load_pair(pair, None, False, (), 4)
    with pytest.raises(DataError, match="a whole number of times"):
        load_pair(PairFile("a", pair.hq, pair.lq or ""), None, False, ())
    write(tmp_path / "lq", "a.png", size=(8, 8))
    with pytest.raises(DataError, match="a whole number of times"):
        load_pair(pair, None, False, ())


def test_degrades_the_clean_file_by_key(tmp_path: Path) -> None:
    hq = write(tmp_path / "hq", "a.png", size=(17, 26))
    [pair] = list_pairs(hq, None)
    degradation = Degradation(scale=4, noise_prob=1, noise_sigma=(25, 25))
    low, high = load_pair(pair, degradation, False, (0, "a.png", 3))
    assert low.shape == (4, 6, 3)
    assert high.shape == (16, 24, 3)
    assert np.array_equal(high, decode_image(Path(pair.hq).read_bytes())[:16, :24])
    assert np.array_equal(low, degradation(high, sample_rng(0, "a.png", 3)))
    assert not np.array_equal(low, load_pair(pair, degradation, False, (0, "a.png", 4))[0])
    with pytest.raises(DataError, match=r"a\.png: 26x17 is too small"):
        load_pair(pair, Degradation(scale=20), False, ())


def test_gray_reaches_both(tmp_path: Path) -> None:
    hq, lq = write(tmp_path / "hq", "a.png"), write(tmp_path / "lq", "a.png")
    for image in load_pair(list_pairs(hq, lq)[0], None, True, ()):
        assert np.array_equal(image[..., 0], image[..., 2])
    _, high = load_pair(list_pairs(hq, None)[0], make_degradation("noise"), True, ())
    assert np.array_equal(high[..., 0], high[..., 2])


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    hq, lq = write(tmp_path / "hq", "a.png"), write(tmp_path / "lq", "a.png")
    [pair] = list_pairs(hq, lq)
    (tmp_path / "lq" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"lq/a\.png: empty file"):
        load_pair(pair, None, False, ())
    (tmp_path / "lq" / "a.png").unlink()
    with pytest.raises(DataError, match=r"lq/a\.png: no such file$"):
        load_pair(pair, None, False, ())


@pytest.mark.parametrize("scale", [2, 4])
def test_set5(shared_data: Path, scale: int) -> None:
    root = shared_data / "paired_sr" / "Set5"
    pairs = list_pairs(str(root / "HR"), str(root / "LR_bicubic" / f"X{scale}"), f"{{}}x{scale}")
    assert [pair.id for pair in pairs] == ["baby.png", "bird.png", "butterfly.png", "head.png", "woman.png"]
    for pair in pairs:
        low, high = load_pair(pair, None, False, (), scale)
        assert high.shape[0] == low.shape[0] * scale


def test_a_pair_knows_what_the_listing_told_of_its_files(tmp_path: Path) -> None:
    for side, content in (("hq", b"clean"), ("lq", b"low")):
        (tmp_path / side).mkdir()
        (tmp_path / side / "a.png").write_bytes(content)
    [pair] = list_pairs(str(tmp_path / "hq"), str(tmp_path / "lq"))
    assert [(file.uri, file.size) for file in pair.files] == [(pair.hq, 5), (pair.lq, 3)]
    assert all(file.modified is not None for file in pair.files)
    [single] = list_pairs(str(tmp_path / "hq"), None)
    assert [file.uri for file in single.files] == [single.hq]


@pytest.mark.parametrize(
    ("hq", "lq", "scale", "advice"),
    [
        ((32, 24), (16, 12), 1, "the student's scale is 1: take one of scale 2, or pairs of scale 1"),
        ((16, 12), (32, 24), 2, "are the two folders swapped"),
        ((16, 12), (32, 24), None, "are the two folders swapped"),
        ((16, 12), (16, 11), 1, "source.lq_template"),
    ],
)
def test_sizes_that_do_not_fit_name_both_files_and_what_may_be_wrong(
    tmp_path: Path, hq: tuple[int, int], lq: tuple[int, int], scale: int | None, advice: str
) -> None:
    for side, (height, width) in (("hq", hq), ("lq", lq)):
        (tmp_path / side).mkdir()
        (tmp_path / side / "a.png").write_bytes(encode_png(np.zeros((height, width, 3), np.float32)))
    [pair] = list_pairs(str(tmp_path / "hq"), str(tmp_path / "lq"))
    with pytest.raises(DataError) as caught:
        load_pair(pair, None, False, (), scale)
    assert advice in str(caught.value)
    assert pair.hq in str(caught.value)
    assert str(pair.lq) in str(caught.value)

"""Pairs that do not fit and images that cannot be read: told before Stage 0, with the names and how to mend it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from gmd_ray.planning import Findings, Preflight
from tests.planning.conftest import config, picture, tear


def read_data_sets(root: Path, *more: str, verb: str = "adapt") -> Findings:
    return Preflight(config(root, *more), verb).run()


def errors(found: Findings) -> list[str]:
    return [finding.message for finding in found.of("error")]


@pytest.mark.parametrize(
    ("hq", "lq", "words"),
    [
        ((64, 96), (32, 48), "these are of scale 2: give a student.path of that scale"),
        ((32, 48), (64, 96), "lq is the larger one: are source.hq and source.lq swapped?"),
        ((32, 48), (31, 48), "are the two of one photo?"),
        ((33, 48), (32, 48), "are the two of one photo?"),
        ((48, 32), (32, 48), "are the two of one photo?"),
    ],
)
def test_sizes_of_source_pairs(hq: tuple[int, int], lq: tuple[int, int], words: str, tmp_path: Path) -> None:
    cfg = config(tmp_path)
    for i in range(4):
        picture(tmp_path / "source_hq" / f"{i}.png", *hq)
        picture(tmp_path / "source_lq" / f"{i}.png", *lq)
    [error] = Preflight(cfg, "adapt").run().of("error")
    assert error.code == "sizes"
    assert "source.hq and source.lq: 4 of 4 pairs do not fit (0.png: hq " in error.message
    assert "hq has to be 1 times as large as lq, which is the student's scale" in error.message
    assert words in error.message
    assert Preflight(cfg, "generate").run().ok, "it does not read them"


@pytest.mark.parametrize("which", ["source_test", "target_test"])
def test_sizes_of_the_pairs_of_the_evaluation(which: str, tmp_path: Path) -> None:
    cfg = config(tmp_path)
    picture(tmp_path / f"{which}_hq" / "1.png", 64, 96)
    for verb in ("adapt", "evaluate"):
        [error] = Preflight(cfg, verb).run().of("error")
        name = which.removesuffix("_test")
        assert f"evaluation.{name}_hq and evaluation.{name}_lq: 1 of 2 pairs do not fit (1.png" in error.message


def test_a_photo_turned_by_its_exif_block_fits(tmp_path: Path) -> None:
    """Early, where the header has it, and behind the pixels of a PNG, where only decoding finds it."""
    cfg = config(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (tmp_path / "source_lq" / "1.png", tmp_path / "source_hq" / "2.png"):
        picture(path, 48, 32, exif=exif)  # stored lying down
    late = tmp_path / "source_hq" / "3.png"
    picture(late, 48, 32, exif=exif)
    data = late.read_bytes()
    at = data.index(b"eXIf") - 4
    block = data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]
    end = data.index(b"IEND") - 4
    late.write_bytes(data[:at] + data[at + len(block) : end] + block + data[end:])
    assert errors(Preflight(cfg, "adapt").run()) == []


@pytest.mark.parametrize(
    ("torn", "key"),
    [
        ("source_hq/1.png", "source.hq"),
        ("source_lq/1.png", "source.lq"),
        ("source_test_lq/1.png", "evaluation.source_lq"),
        ("target_test_hq/1.png", "evaluation.target_hq"),
    ],
)
def test_a_torn_image_is_named_with_its_setting(torn: str, key: str, tmp_path: Path) -> None:
    cfg = config(tmp_path)
    tear(tmp_path / torn)
    [error] = Preflight(cfg, "adapt").run().of("error")
    assert (error.code, error.key) == ("torn", key)
    count = 4 if key.startswith("source") else 2
    assert error.message.startswith(
        f"{key}={tmp_path / torn.split('/')[0]}: 1 of {count} images cannot be read (1.png: "
    )
    assert "take them out with their partners" in error.message


def test_target_photos_that_fail_are_counted_and_all_of_them_are_an_error(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    (tmp_path / "photos" / "raw.nef").write_bytes(b"raw")
    tear(tmp_path / "photos" / "0.jpg")
    found = Preflight(cfg, "generate").run()
    assert found.ok
    [warning] = found.of("warning")
    assert "2 of 5 target photos cannot be read and will be failed rows (0.jpg: " in warning.message
    for i in range(1, 4):
        tear(tmp_path / "photos" / f"{i}.jpg")
    [error] = Preflight(cfg, "generate").run().of("error")
    assert "none of its 5 photos can be read" in error.message


def test_a_degradation_of_another_scale(tmp_path: Path) -> None:
    cfg = config(tmp_path, "source.lq=null", "source.degradation=realesrgan")
    found = errors(Preflight(cfg, "adapt").run())
    assert found == [
        "source.degradation=realesrgan shrinks by 4, and the student enlarges by 1: set source.degradation_args.scale=1"
    ]
    found = errors(read_data_sets(tmp_path, "source.lq=null", "source.degradation=noise25"))
    assert found == []


def test_images_too_small_to_be_degraded(tmp_path: Path) -> None:
    cfg = config(tmp_path, "source.lq=null", "source.degradation=realesrgan", "source.degradation_args.scale=4")
    picture(tmp_path / "source_hq" / "2.png", 3, 48)
    assert any(
        "1 images are too small to be degraded at scale 4 (2.png: 48x3)" in line
        for line in errors(Preflight(cfg, "adapt").run())
    )


def test_truths_of_the_supervised_control(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "truth" / f"{i}.png", *((32, 48) if i else (64, 96)))
    more = ("controls=[supervised]", f"training.supervised_hq={tmp_path / 'truth'}")
    [error] = read_data_sets(tmp_path, *more).of("error")
    assert "training.supervised_hq and target.path: 1 of 4 pairs do not fit (0.jpg" in error.message


def test_small_images_are_a_fact(tmp_path: Path) -> None:
    found = read_data_sets(tmp_path, "training.patch=40")
    assert found.ok
    assert any("training.patch=40: 4 of 4 source images are smaller" in finding.message for finding in found.of("fact"))


def test_a_set_that_cannot_be_listed_does_not_hide_the_others(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    (tmp_path / "source_lq" / "3.png").unlink()
    picture(tmp_path / "target_test_hq" / "1.png", 64, 96)
    found = errors(Preflight(cfg, "adapt").run())
    assert len(found) == 2
    assert any("have no partner" in line for line in found)


def test_a_student_that_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "student.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    for verb in ("adapt", "generate", "evaluate"):
        [error] = read_data_sets(tmp_path, f"student.path={tmp_path / 'student.pth'}", verb=verb).of("error")
        assert (error.code, "student.pth" in error.message) == ("student", True)

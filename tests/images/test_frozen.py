"""Frozen sets: the bytes of the pipeline on the fly, by any number of processes, and taken up where they stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from gmd_ray.cli import main
from gmd_ray.errors import ConfigError, DataError, ResumeMismatchError
from gmd_ray.images import frozen
from gmd_ray.images.decode import decode_image
from gmd_ray.images.degradations import PRESETS, make_degradation, sample_rng
from gmd_ray.images.encode import encode_png
from gmd_ray.images.frozen import Freezing, freeze
from gmd_ray.images.pairs import PairFile, load_pair
from tests.images.test_degradations import picture

STRONG = make_degradation("strong")


@pytest.fixture
def hq(tmp_path: Path) -> Path:
    folder = tmp_path / "clean"
    for i, name in enumerate(("a.png", "city/b.png", "city/c.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode_png(np.roll(picture(96), 17 * i, (0, 1))[: 90 - i]))
    return folder


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def lines(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "parameters.jsonl").read_text().splitlines()]


def test_whole_images_are_those_of_the_pipeline_on_the_fly(hq: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert freeze(str(hq), out, Freezing(STRONG, seed=7), workers=1) == 3
    for name in ("a.png", "city/b.png", "city/c.png"):
        pair = PairFile(name, None, str(hq / name))
        lq, clean = load_pair(pair, STRONG, False, (7, name, 0))
        assert (out / "lq" / name).read_bytes() == encode_png(lq)
        assert (out / "hq" / name).read_bytes() == encode_png(clean)


def test_a_crop_is_degraded_as_on_the_fly_with_its_key(hq: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert freeze(str(hq), out, Freezing(STRONG, seed=3, crops=7, size=64), workers=1) == 7
    assert sorted(path.relative_to(out / "lq").as_posix() for path in (out / "lq").rglob("*.png")) == [
        "a_0000.png", "a_0001.png", "a_0002.png",
        "city/b_0000.png", "city/b_0001.png", "city/c_0000.png", "city/c_0001.png",
    ]  # fmt: skip
    places = set()
    for record in lines(out):
        crop = record["crop"]
        image = decode_image((hq / record["source"]).read_bytes())
        clean = image[crop["top"] : crop["top"] + 64, crop["left"] : crop["left"] + 64]
        assert (crop["height"], crop["width"]) == (64, 64)
        lq = STRONG(np.ascontiguousarray(clean), sample_rng(3, record["source"], record["index"]))
        data = (out / "lq" / f"{record['id']}.png").read_bytes()
        assert data == encode_png(lq)
        assert record["sha256"] == hashlib.sha256(data).hexdigest()
        assert (out / "hq" / f"{record['id']}.png").read_bytes() == encode_png(clean)
        places.add((record["source"], crop["top"], crop["left"]))
    assert len(places) == 7


def test_what_was_drawn_is_written_and_lies_in_the_presets_ranges(hq: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    freeze(str(hq), out, Freezing(STRONG, crops=9, size=64), workers=1)
    records = lines(out)
    assert [record["id"] for record in records] == sorted(record["id"] for record in records)
    for record in records:
        steps = record["steps"]
        operations = [step["operation"] for step in steps]
        assert operations[0] in ("blur", "sinc")
        assert operations[1] == "resize"
        assert operations.count("jpeg") == 2
        assert sum(operation.endswith("noise") for operation in operations) == 2
        assert all(step["size"] in (17, 19, 21) for step in steps if step["operation"] in ("blur", "sinc"))
        first = next(step for step in steps if step["operation"].endswith("noise"))
        low, high = (19, 30) if first["operation"] == "gaussian_noise" else (1.9, 3.0)
        assert low <= first["level"] <= high
        last = [step for step in steps if step["operation"] == "resize"][-1]
        assert (last["height"], last["width"]) == (16, 16)


@pytest.mark.parametrize("name", PRESETS)
def test_recording_draws_nothing(name: str) -> None:
    image = picture(96)
    steps: list[dict] = []
    assert np.array_equal(PRESETS[name](image, sample_rng(1), steps), PRESETS[name](image, sample_rng(1)))
    json.dumps(steps)
    assert bool(steps) == (name != "none")


def test_any_number_of_processes_and_a_stopped_run_leave_the_same_files(
    hq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = Freezing(STRONG, crops=7, size=64)
    freeze(str(hq), tmp_path / "one", how, workers=1)
    assert freeze(str(hq), tmp_path / "two", how, workers=2) == 7
    assert files(tmp_path / "two") == files(tmp_path / "one")

    write = frozen._write
    done = []

    def dies(*given: object) -> list[dict]:
        if done:
            raise KeyboardInterrupt
        done.append(given)
        return write(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(frozen, "_write", dies)
        with pytest.raises(KeyboardInterrupt):
            freeze(str(hq), tmp_path / "stopped", how, workers=1)
    with (tmp_path / "stopped" / "parameters.jsonl").open("a") as stream:
        stream.write('{"id": "half a li')
    assert freeze(str(hq), tmp_path / "stopped", how, workers=1) == 4  # all but the first image's three
    assert files(tmp_path / "stopped") == files(tmp_path / "one")
    assert freeze(str(hq), tmp_path / "stopped", how, workers=1) == 0
    (tmp_path / "stopped" / "hq" / "a_0001.png").unlink()
    assert freeze(str(hq), tmp_path / "stopped", how, workers=1) == 1
    assert files(tmp_path / "stopped") == files(tmp_path / "one")


def test_other_settings_on_the_same_folder_are_refused(hq: Path, tmp_path: Path) -> None:
    freeze(str(hq), tmp_path / "out", Freezing(STRONG), workers=1)
    with pytest.raises(ResumeMismatchError, match=r"\(degradation, seed\)"):
        freeze(str(hq), tmp_path / "out", Freezing(make_degradation("weak"), seed=1), workers=1)
    with pytest.raises(ResumeMismatchError, match=r"\(images, names\)"):
        freeze(str(hq), tmp_path / "out", Freezing(STRONG), limit=2, workers=1)


def test_the_verb_cuts_centres_and_takes_fields(hq: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["degrade", "-i", str(hq), "-o", str(out), "--crops", "center", "--size", "32", "--lq-only"]
    assert main([*command, "--preset", "bicubic", "--set", "scale=2", "--workers", "1"]) == 0
    assert "3 images written" in capsys.readouterr().out
    assert not (out / "hq").exists()
    image = decode_image((hq / "a.png").read_bytes())
    top, left = (image.shape[0] - 32) // 2, (image.shape[1] - 32) // 2
    lq = make_degradation("bicubic", {"scale": 2})(image[top : top + 32, left : left + 32], sample_rng(0))
    assert (out / "lq" / "a.png").read_bytes() == encode_png(lq)
    assert main([*command, "--preset", "bicubicc"]) == 2
    assert "did you mean 'bicubic'" in capsys.readouterr().err
    assert main(["degrade", "-i", str(hq), "-o", str(out), "--preset", "none", "--crops", "middle", "--size", "8"]) == 2
    assert "crops=middle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crops": 3}, "give both"),
        ({"size": 64}, "give both"),
        ({"crops": 0, "size": 64}, "at least 1"),
        ({"crops": 3, "size": 66}, "multiple of the degradation's scale 4"),
    ],
)
def test_crops_that_cannot_be_cut(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Freezing(STRONG, **settings)


def test_an_image_that_cannot_be_used_is_named(hq: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png: 96x90 is too small for crops of 92 pixels"):
        freeze(str(hq), tmp_path / "small", Freezing(STRONG, crops=1, size=92), workers=1)
    (hq / "city" / "b.png").write_bytes(b"no image")
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"city/b\.png"):
            freeze(str(hq), tmp_path / f"bad{workers}", Freezing(STRONG), workers=workers)
    (hq / "a.jpg").write_bytes((hq / "a.png").read_bytes())
    with pytest.raises(DataError, match=r"a\.jpg and a\.png share a name"):
        freeze(str(hq), tmp_path / "twins", Freezing(STRONG), workers=1)

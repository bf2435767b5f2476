"""Frozen sets: the bytes of the pipeline on the fly, by any number of processes, and taken up where they stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from gmd_ray.cli import main
from gmd_ray.errors import ConfigError, DataError, ExitCode, ResumeMismatchError
from gmd_ray.images.degradation.degradations import PRESETS, make_degradation, sample_rng
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.encode import encode_png
from gmd_ray.images.sets import frozen
from gmd_ray.images.sets.frozen import FrozenSetSpec, write_frozen_set
from gmd_ray.images.sets.pairs import PairFile, load_pair
from tests.images.degradation.test_degradations import picture

STRONG = make_degradation("strong")


def clean_folder(tmp_path: Path) -> Path:
    """Make three pictures, two of them in a subfolder."""
    folder = tmp_path / "clean"
    for i, name in enumerate(("a.png", "city/b.png", "city/c.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode_png(np.roll(picture(96), 17 * i, (0, 1))[: 90 - i]))
    return folder


@pytest.fixture
def hq(tmp_path: Path) -> Path:
    return clean_folder(tmp_path)


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def lines(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "parameters.jsonl").read_text().splitlines()]


def test_whole_images_are_those_of_the_pipeline_on_the_fly(hq: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert write_frozen_set(str(hq), out, FrozenSetSpec(STRONG, seed=7), workers=1).written == 3
    for name in ("a.png", "city/b.png", "city/c.png"):
        pair = PairFile(name, None, str(hq / name))
        lq, clean = load_pair(pair, STRONG, False, (7, name, 0))
        assert (out / "lq" / name).read_bytes() == encode_png(lq)
        assert (out / "hq" / name).read_bytes() == encode_png(clean)


def test_a_crop_is_degraded_as_on_the_fly_with_its_key(hq: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert write_frozen_set(str(hq), out, FrozenSetSpec(STRONG, seed=3, crops=7, size=64), workers=1).written == 7
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
    write_frozen_set(str(hq), out, FrozenSetSpec(STRONG, crops=9, size=64), workers=1)
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
    how = FrozenSetSpec(STRONG, crops=7, size=64)
    write_frozen_set(str(hq), tmp_path / "one", how, workers=1)
    assert write_frozen_set(str(hq), tmp_path / "two", how, workers=2).written == 7
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
            write_frozen_set(str(hq), tmp_path / "stopped", how, workers=1)
    with (tmp_path / "stopped" / "parameters.jsonl").open("a") as stream:
        stream.write('{"id": "half a li')
    # All but the first image's three.
    assert write_frozen_set(str(hq), tmp_path / "stopped", how, workers=1).written == 4
    assert files(tmp_path / "stopped") == files(tmp_path / "one")
    assert write_frozen_set(str(hq), tmp_path / "stopped", how, workers=1).written == 0
    (tmp_path / "stopped" / "hq" / "a_0001.png").unlink()
    assert write_frozen_set(str(hq), tmp_path / "stopped", how, workers=1).written == 1
    assert files(tmp_path / "stopped") == files(tmp_path / "one")


def test_other_settings_on_the_same_folder_are_refused(hq: Path, tmp_path: Path) -> None:
    write_frozen_set(str(hq), tmp_path / "out", FrozenSetSpec(STRONG), workers=1)
    with pytest.raises(ResumeMismatchError, match=r"\(degradation, seed\)"):
        write_frozen_set(str(hq), tmp_path / "out", FrozenSetSpec(make_degradation("weak"), seed=1), workers=1)
    with pytest.raises(ResumeMismatchError, match=r"\(images, names\)"):
        write_frozen_set(str(hq), tmp_path / "out", FrozenSetSpec(STRONG), limit=2, workers=1)


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
        FrozenSetSpec(STRONG, **settings)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_cannot_be_used_is_named_and_the_rest_done(workers: int, hq: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_frozen_set(str(hq), tmp_path / "whole", FrozenSetSpec(STRONG), workers=1)
    whole = (hq / "city" / "b.png").read_bytes()
    (hq / "city" / "b.png").write_bytes(whole[: len(whole) // 2])
    (hq / "a.png").unlink()
    (hq / "a.cr3").write_bytes(b"raw")
    done = write_frozen_set(str(hq), out, FrozenSetSpec(STRONG), workers=workers)
    assert done.written == 1
    assert list(done.failed) == [f"{hq}/a.cr3", f"{hq}/city/b.png"]
    assert done.failed[f"{hq}/a.cr3"].startswith("a Canon raw file")
    assert "damaged or truncated PNG" in done.failed[f"{hq}/city/b.png"]
    assert [line["id"] for line in lines(out)] == ["city/c"]
    assert sorted(path for path in files(out) if path.endswith(".png")) == ["hq/city/c.png", "lq/city/c.png"]
    (hq / "city" / "b.png").write_bytes(whole)  # put right: the same command makes it
    done = write_frozen_set(str(hq), out, FrozenSetSpec(STRONG), workers=workers)
    assert (done.written, list(done.failed)) == (1, [f"{hq}/a.cr3"])
    for side in ("lq", "hq"):
        assert files(out)[f"{side}/city/b.png"] == files(tmp_path / "whole")[f"{side}/city/b.png"]


def test_raw_files_take_no_part_in_names_and_crops(hq: Path, tmp_path: Path) -> None:
    how = FrozenSetSpec(STRONG, crops=7, size=64)
    write_frozen_set(str(hq), tmp_path / "without", how, limit=2, workers=1)
    for name in ("a0.cr3", "a0.hif", "a0.jxl", "city/b.nef"):
        (hq / name).write_bytes(b"raw")
    done = write_frozen_set(str(hq), tmp_path / "with", how, limit=2, workers=1)
    assert list(done.failed) == [f"{hq}/a0.cr3", f"{hq}/a0.hif", f"{hq}/a0.jxl"]  # b.nef lies beside b.png
    assert files(tmp_path / "with") == files(tmp_path / "without")
    for path in hq.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="no image that this program decodes among 4"):
        write_frozen_set(str(hq), tmp_path / "none", how, workers=1)
    with pytest.raises(ConfigError, match="limit=0"):
        write_frozen_set(str(hq), tmp_path / "none", how, limit=0, workers=1)


def test_an_image_smaller_than_a_crop_is_named_and_the_rest_done(hq: Path, tmp_path: Path) -> None:
    done = write_frozen_set(str(hq), tmp_path / "small", FrozenSetSpec(STRONG, crops="center", size=88), workers=1)
    assert done.written == 3
    (hq / "a.png").write_bytes(encode_png(picture(96)[:40]))
    done = write_frozen_set(str(hq), tmp_path / "small", FrozenSetSpec(STRONG, crops="center", size=88), workers=1)
    assert done.failed == {f"{hq}/a.png": "96x40 is too small for crops of 88 pixels"}
    assert "lq/a.png" not in files(tmp_path / "small")  # it was of the picture that lay there before
    assert [line["id"] for line in lines(tmp_path / "small")] == ["city/b", "city/c"]


def test_the_verb_names_what_it_left_out(hq: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (hq / "city" / "torn\x1b[2J\n.png").write_bytes(b"no image")
    command = ["degrade", "-i", str(hq), "-o", str(tmp_path / "out"), "--preset", "bicubic", "--workers", "1"]
    assert main(command) == ExitCode.DATA
    told = capsys.readouterr()
    assert "3 images written" in told.out
    assert f"gmd-ray: {hq}/city/torn\\x1b[2J\\n.png: " in told.err
    assert "\x1b" not in told.err
    (hq / "city" / "torn\x1b[2J\n.png").unlink()


def test_two_images_of_one_name(hq: Path, tmp_path: Path) -> None:
    (hq / "a.jpg").write_bytes((hq / "a.png").read_bytes())
    with pytest.raises(DataError, match=r"a\.jpg and a\.png share a name"):
        write_frozen_set(str(hq), tmp_path / "twins", FrozenSetSpec(STRONG), workers=1)


def test_links_make_no_copies(hq: Path, tmp_path: Path) -> None:
    (hq / "latest").symlink_to(".")
    assert write_frozen_set(str(hq), tmp_path / "out", FrozenSetSpec(STRONG), workers=1).written == 3


def test_shared_input_source_torn(tmp_path: Path) -> None:
    folder = Path(__file__).parents[3].parent / "shared" / "inputs" / "source_torn" / "hq"
    if not folder.is_dir():
        pytest.skip("shared inputs are not here")
    done = write_frozen_set(str(folder), tmp_path / "out", FrozenSetSpec(make_degradation("bicubic")), workers=1)
    assert done.written == 3
    assert list(done.failed) == [f"{folder}/3.png"]

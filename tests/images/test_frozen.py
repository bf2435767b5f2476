"""Frozen sets: the bytes of the pipeline on the fly, by any number of processes, and taken up where they stopped."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmd_ray.cli import main
from gmd_ray.errors import ConfigError, DataError, ResumeMismatchError, StorageError
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
    assert freeze(str(hq), out, Freezing(STRONG, seed=7), workers=1).written == 3
    for name in ("a.png", "city/b.png", "city/c.png"):
        pair = PairFile(name, None, str(hq / name))
        lq, clean = load_pair(pair, STRONG, False, (7, name, 0))
        assert (out / "lq" / name).read_bytes() == encode_png(lq)
        assert (out / "hq" / name).read_bytes() == encode_png(clean)


def test_a_crop_is_degraded_as_on_the_fly_with_its_key(hq: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert freeze(str(hq), out, Freezing(STRONG, seed=3, crops=7, size=64), workers=1).written == 7
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
    assert freeze(str(hq), tmp_path / "two", how, workers=2).written == 7
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
    assert freeze(str(hq), tmp_path / "stopped", how, workers=1).written == 4  # all but the first image's three
    assert files(tmp_path / "stopped") == files(tmp_path / "one")
    assert freeze(str(hq), tmp_path / "stopped", how, workers=1).written == 0
    (tmp_path / "stopped" / "hq" / "a_0001.png").unlink()
    assert freeze(str(hq), tmp_path / "stopped", how, workers=1).written == 1
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


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_cannot_be_used_is_named_and_the_rest_done(workers: int, hq: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    freeze(str(hq), tmp_path / "whole", Freezing(STRONG), workers=1)
    whole = (hq / "city" / "b.png").read_bytes()
    (hq / "city" / "b.png").write_bytes(whole[: len(whole) // 2])
    (hq / "a.png").unlink()
    (hq / "a.cr3").write_bytes(b"raw")
    done = freeze(str(hq), out, Freezing(STRONG), workers=workers)
    assert done.written == 1
    assert list(done.failed) == [f"{hq}/a.cr3", f"{hq}/city/b.png"]
    assert done.failed[f"{hq}/a.cr3"].startswith("a Canon raw file")
    assert "damaged or truncated PNG" in done.failed[f"{hq}/city/b.png"]
    assert [line["id"] for line in lines(out)] == ["city/c"]
    assert sorted(path for path in files(out) if path.endswith(".png")) == ["hq/city/c.png", "lq/city/c.png"]
    (hq / "city" / "b.png").write_bytes(whole)  # put right: the same command makes it
    done = freeze(str(hq), out, Freezing(STRONG), workers=workers)
    assert (done.written, list(done.failed)) == (1, [f"{hq}/a.cr3"])
    for side in ("lq", "hq"):
        assert files(out)[f"{side}/city/b.png"] == files(tmp_path / "whole")[f"{side}/city/b.png"]


def test_an_image_smaller_than_a_crop_is_named_and_the_rest_done(hq: Path, tmp_path: Path) -> None:
    done = freeze(str(hq), tmp_path / "small", Freezing(STRONG, crops="center", size=88), workers=1)
    assert done.written == 3
    (hq / "a.png").write_bytes(encode_png(picture(96)[:40]))
    done = freeze(str(hq), tmp_path / "small", Freezing(STRONG, crops="center", size=88), workers=1)
    assert done.failed == {f"{hq}/a.png": "96x40 is too small for crops of 88 pixels"}
    assert "lq/a.png" not in files(tmp_path / "small")  # it was of the picture that lay there before
    assert [line["id"] for line in lines(tmp_path / "small")] == ["city/b", "city/c"]


def test_the_verb_names_what_it_left_out(hq: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (hq / "city" / "torn\x1b[2J\n.png").write_bytes(b"no image")
    command = ["degrade", "-i", str(hq), "-o", str(tmp_path / "out"), "--preset", "bicubic", "--workers", "1"]
    assert main(command) == 1
    told = capsys.readouterr()
    assert "3 images written" in told.out
    assert f"gmd-ray: {hq}/city/torn\\x1b[2J\\n.png: " in told.err
    assert "\x1b" not in told.err
    (hq / "city" / "torn\x1b[2J\n.png").unlink()


def test_two_images_of_one_name(hq: Path, tmp_path: Path) -> None:
    (hq / "a.jpg").write_bytes((hq / "a.png").read_bytes())
    with pytest.raises(DataError, match=r"a\.jpg and a\.png share a name"):
        freeze(str(hq), tmp_path / "twins", Freezing(STRONG), workers=1)


def set_time(path: Path, seconds: int) -> None:
    os.utime(path, (seconds, seconds))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("crops", [{}, {"crops": 7, "size": 64}])
def test_a_photo_that_changed_under_its_name_is_made_anew(
    workers: int, crops: dict, hq: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    how, out, photo = Freezing(STRONG, **crops), tmp_path / "out", hq / "city" / "b.png"
    freeze(str(hq), out, how, workers=1)
    before = files(out)
    old = photo.read_bytes()
    other = encode_png(np.flipud(decode_image(old)))
    photo.write_bytes(other + bytes(max(0, len(old) - len(other))))
    assert freeze(str(hq), tmp_path / "new", how, workers=1).remade == ()
    set_time(photo, 1_800_000_000)
    done = freeze(str(hq), out, how, workers=workers)
    mine = [line["id"] for line in lines(out) if line["source"] == "city/b.png"]
    assert done.remade == ("city/b.png",)
    assert done.written == len(mine)
    assert "1 images have changed since they were degraded, and were made anew: city/b.png" in caplog.text
    for name, data in files(tmp_path / "new").items():
        if name.endswith(".png"):
            assert files(out)[name] == data
    changed = {name for name, data in files(out).items() if name.endswith(".png") and before[name] != data}
    assert changed == {f"{side}/{name}.png" for side in ("lq", "hq") for name in mine}
    for line in lines(out):
        source = hq / line["source"]
        assert line["digest"] == hashlib.sha256(source.read_bytes()).hexdigest()
        assert line["bytes"] == source.stat().st_size
        assert datetime.fromisoformat(line["modified"]).timestamp() == pytest.approx(source.stat().st_mtime, abs=1e-5)
    caplog.clear()
    assert freeze(str(hq), out, how, workers=workers) == frozen.Frozen(0, (), {})
    assert not caplog.text


def test_only_files_of_another_size_or_time_are_read_again(
    hq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    freeze(str(hq), out, Freezing(STRONG), workers=1)
    before = {name: data for name, data in files(out).items() if name.endswith(".png")}
    asked: list[str] = []
    read = frozen.read_file
    monkeypatch.setattr(frozen, "read_file", lambda uri: asked.append(uri) or read(uri))
    assert freeze(str(hq), out, Freezing(STRONG), workers=1).written == 0
    assert asked == []
    set_time(hq / "a.png", 1_800_000_000)  # touched, or copied anew: the same bytes
    assert freeze(str(hq), out, Freezing(STRONG), workers=1) == frozen.Frozen(0, (), {})
    assert asked == [f"{hq}/a.png"]
    assert freeze(str(hq), out, Freezing(STRONG), workers=1).written == 0
    assert asked == [f"{hq}/a.png"]  # its new time is recorded
    assert {name: data for name, data in files(out).items() if name.endswith(".png")} == before


def test_a_change_of_the_same_size_is_noticed_by_its_time(hq: Path, tmp_path: Path) -> None:
    out, photo = tmp_path / "out", hq / "a.bmp"
    (hq / "a.png").unlink()
    for seed in (0, 1):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)).save(photo)
        set_time(photo, 1_700_000_000 + seed)
        done = freeze(str(hq), out, Freezing(STRONG), workers=1)
        assert done.remade == (("a.bmp",) if seed else ())
        assert (out / "hq" / "a.png").read_bytes() == encode_png(decode_image(photo.read_bytes()))


def test_records_of_an_older_version_are_kept_as_they_are(hq: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    freeze(str(hq), out, Freezing(STRONG), workers=1)
    old = [{key: line[key] for key in line if key not in ("bytes", "modified", "digest")} for line in lines(out)]
    (out / "parameters.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    set_time(hq / "a.png", 1_800_000_000)
    assert freeze(str(hq), out, Freezing(STRONG), workers=1).written == 0
    assert lines(out) == old
    (out / "lq" / "a.png").unlink()
    assert freeze(str(hq), out, Freezing(STRONG), workers=1).written == 1
    assert ["digest" in line for line in lines(out)] == [True, False, False]


def test_storage_that_fails_takes_nothing_away(hq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    freeze(str(hq), out, Freezing(STRONG), workers=1)
    before = files(out)
    set_time(hq / "a.png", 1_800_000_000)

    def fails(uri: str) -> bytes:
        raise StorageError(f"{uri}: cannot be read: reset")

    monkeypatch.setattr(frozen, "read_file", fails)
    done = freeze(str(hq), out, Freezing(STRONG), workers=1)
    assert done == frozen.Frozen(0, (), {f"{hq}/a.png": "cannot be read: reset"})
    assert files(out) == before


def test_results_never_take_the_place_of_their_inputs(hq: Path, tmp_path: Path) -> None:
    photos = {path: path.read_bytes() for path in hq.rglob("*.png")}
    (tmp_path / "data").mkdir()
    hq.rename(tmp_path / "data" / "hq")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "lq").symlink_to(tmp_path / "data" / "hq")
    clean = tmp_path / "data" / "hq"
    for source, out in (
        (clean, tmp_path / "data"),  # writes hq/ of its own
        (clean / "city", tmp_path / "data"),
        (clean, clean),
        (tmp_path / "data", tmp_path / "data" / "frozen"),
        (clean, tmp_path / "linked"),
    ):
        with pytest.raises(ConfigError, match="lie in one another: write elsewhere"):
            freeze(str(source), out, Freezing(STRONG), workers=1)
    assert {path.relative_to(clean): path.read_bytes() for path in clean.rglob("*.png")} == {
        path.relative_to(hq): data for path, data in photos.items()
    }
    for empty in ("", "  ", "memory://x"):
        with pytest.raises(ConfigError, match="give a local folder"):
            freeze(str(clean), empty, Freezing(STRONG), workers=1)
    with pytest.raises(ConfigError, match="an empty path"):
        freeze("", tmp_path / "x", Freezing(STRONG), workers=1)


def test_links_make_no_copies(hq: Path, tmp_path: Path) -> None:
    (hq / "latest").symlink_to(".")
    assert freeze(str(hq), tmp_path / "out", Freezing(STRONG), workers=1).written == 3


def test_shared_input_source_torn(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2].parent / "shared" / "inputs" / "source_torn" / "hq"
    if not folder.is_dir():
        pytest.skip("shared inputs are not here")
    done = freeze(str(folder), tmp_path / "out", Freezing(make_degradation("bicubic")), workers=1)
    assert done.written == 3
    assert list(done.failed) == [f"{folder}/3.png"]

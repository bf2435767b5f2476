"""The records of a frozen set: a changed photo is noticed, and nothing is written over an input."""

from __future__ import annotations

import hashlib
import io
import json
import os
from datetime import datetime
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from gmd_ray.errors import ConfigError, StorageError
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.encode import encode_png
from gmd_ray.images.sets import frozen
from gmd_ray.images.sets.frozen import FrozenSetSpec, write_frozen_set
from tests.images.sets.test_frozen import STRONG, clean_folder, files, lines


@pytest.fixture
def hq(tmp_path: Path) -> Path:
    return clean_folder(tmp_path)


def set_time(path: Path, seconds: int) -> None:
    os.utime(path, (seconds, seconds))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("crops", [{}, {"crops": 7, "size": 64}])
def test_a_photo_that_changed_under_its_name_is_made_anew(
    workers: int, crops: dict, hq: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    how, out, photo = FrozenSetSpec(STRONG, **crops), tmp_path / "out", hq / "city" / "b.png"
    write_frozen_set(str(hq), out, how, workers=1)
    before = files(out)
    old = photo.read_bytes()
    other = encode_png(np.flipud(decode_image(old)))
    photo.write_bytes(other + bytes(max(0, len(old) - len(other))))
    assert write_frozen_set(str(hq), tmp_path / "new", how, workers=1).remade == ()
    set_time(photo, 1_800_000_000)
    done = write_frozen_set(str(hq), out, how, workers=workers)
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
    assert write_frozen_set(str(hq), out, how, workers=workers) == frozen.Frozen(0, (), {})
    assert not caplog.text


def test_only_files_of_another_size_or_time_are_read_again(
    hq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_frozen_set(str(hq), out, FrozenSetSpec(STRONG), workers=1)
    before = {name: data for name, data in files(out).items() if name.endswith(".png")}
    asked: list[str] = []
    read = frozen.read_file
    monkeypatch.setattr(frozen, "read_file", lambda uri: asked.append(uri) or read(uri))
    assert write_frozen_set(str(hq), out, FrozenSetSpec(STRONG), workers=1).written == 0
    assert asked == []
    set_time(hq / "a.png", 1_800_000_000)  # touched, or copied anew: the same bytes
    assert write_frozen_set(str(hq), out, FrozenSetSpec(STRONG), workers=1) == frozen.Frozen(0, (), {})
    assert asked == [f"{hq}/a.png"]
    assert write_frozen_set(str(hq), out, FrozenSetSpec(STRONG), workers=1).written == 0
    assert asked == [f"{hq}/a.png"]  # its new time is recorded
    assert {name: data for name, data in files(out).items() if name.endswith(".png")} == before


def test_a_change_of_the_same_size_is_noticed_by_its_time(hq: Path, tmp_path: Path) -> None:
    out, photo = tmp_path / "out", hq / "a.bmp"
    (hq / "a.png").unlink()
    for seed in (0, 1):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)).save(photo)
        set_time(photo, 1_700_000_000 + seed)
        done = write_frozen_set(str(hq), out, FrozenSetSpec(STRONG), workers=1)
        assert done.remade == (("a.bmp",) if seed else ())
        assert (out / "hq" / "a.png").read_bytes() == encode_png(decode_image(photo.read_bytes()))


def test_records_of_an_older_version_are_kept_as_they_are(hq: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_frozen_set(str(hq), out, FrozenSetSpec(STRONG), workers=1)
    old = [{key: line[key] for key in line if key not in ("bytes", "modified", "digest")} for line in lines(out)]
    (out / "parameters.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    set_time(hq / "a.png", 1_800_000_000)
    assert write_frozen_set(str(hq), out, FrozenSetSpec(STRONG), workers=1).written == 0
    assert lines(out) == old
    (out / "lq" / "a.png").unlink()
    assert write_frozen_set(str(hq), out, FrozenSetSpec(STRONG), workers=1).written == 1
    assert ["digest" in line for line in lines(out)] == [True, False, False]


def test_storage_that_fails_takes_nothing_away(hq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    write_frozen_set(str(hq), out, FrozenSetSpec(STRONG), workers=1)
    before = files(out)
    set_time(hq / "a.png", 1_800_000_000)

    def fails(uri: str) -> bytes:
        raise StorageError(f"{uri}: cannot be read: reset")

    monkeypatch.setattr(frozen, "read_file", fails)
    done = write_frozen_set(str(hq), out, FrozenSetSpec(STRONG), workers=1)
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
            write_frozen_set(str(source), out, FrozenSetSpec(STRONG), workers=1)
    assert {path.relative_to(clean): path.read_bytes() for path in clean.rglob("*.png")} == {
        path.relative_to(hq): data for path, data in photos.items()
    }
    for empty in ("", "  ", "memory://x"):
        with pytest.raises(ConfigError, match="give a local folder"):
            write_frozen_set(str(clean), empty, FrozenSetSpec(STRONG), workers=1)
    with pytest.raises(ConfigError, match="an empty path"):
        write_frozen_set("", tmp_path / "x", FrozenSetSpec(STRONG), workers=1)


def test_storage_without_times_is_read_to_be_sure(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for seed in (0, 0, 1):
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "BMP")  # of one size, whatever is in it
        memory.pipe("/clean/a.bmp", buffer.getvalue())
        done = write_frozen_set("memory://clean", tmp_path / "out", FrozenSetSpec(STRONG), workers=1)
        assert done.remade == (("a.bmp",) if seed else ())
        assert (tmp_path / "out" / "hq" / "a.png").read_bytes() == encode_png(decode_image(buffer.getvalue()))


def test_a_link_in_the_output_folder_is_followed_and_a_linked_file_replaced(hq: Path, tmp_path: Path) -> None:
    """Only the owner of a folder puts links there: a side may lie on another disk. A file behind a link stays."""
    out, disk = tmp_path / "out", tmp_path / "disk"
    for folder in (out / "hq", disk):
        folder.mkdir(parents=True)
    (out / "lq").symlink_to(disk)
    (tmp_path / "precious").write_bytes(b"precious")
    (out / "hq" / "a.png").symlink_to(tmp_path / "precious")
    assert write_frozen_set(str(hq), out, FrozenSetSpec(STRONG), workers=1).written == 3
    assert (disk / "city" / "b.png").is_file()
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (out / "hq" / "a.png").is_symlink()


def test_half_a_pair_of_an_image_that_is_torn_now_is_taken_away(hq: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_frozen_set(str(hq), out, FrozenSetSpec(STRONG), workers=1)
    (out / "lq" / "a.png").unlink()
    (hq / "a.png").write_bytes(b"torn")
    assert list(write_frozen_set(str(hq), out, FrozenSetSpec(STRONG), workers=1).failed) == [f"{hq}/a.png"]
    assert [line["id"] for line in lines(out)] == ["city/b", "city/c"]
    assert sorted(name for name in files(out) if name.endswith(".png")) == [
        f"{side}/city/{name}.png" for side in ("hq", "lq") for name in "bc"
    ]

"""A second `gmd-ray restore` keeps finished results, restores changed photos again, and leaves no partial file."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gmd_ray import storage as files
from gmd_ray.cli import main
from gmd_ray.config import Config
from gmd_ray.errors import ExitCode, GmdError
from gmd_ray.folders.restore import Restored, restore_folder
from gmd_ray.images.finished import RECORD_FILE
from gmd_ray.students import ModuleStudent
from tests.students.networks import save_network


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "dncnn.pth"
    save_network(path, "dncnn")
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "deep").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.png", "deep/c.png", "d.jpg"]):
        draw(root / name, i)
    return root


def draw(path: Path, seed: int, side: int = 24) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def restore(photos: Path, out: Path, model: Path, **settings: object) -> Restored:
    cfg = Config()
    cfg.student.path, cfg.student.device = str(model), "cpu"
    cfg.student.tile = int(settings.pop("tile", 0))  # type: ignore[call-overload]
    return restore_folder(cfg, str(photos), str(out), **settings)  # type: ignore[arg-type]


def times(out: Path) -> dict[str, int]:
    return {path.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in out.rglob("[!.]*.*")}


def test_the_same_command_again_leaves_what_is_finished(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    args = ["restore", "-i", str(photos), "-o", str(out), "-m", str(model)]
    assert main(args) == 0
    assert capsys.readouterr().out == f"4 of 4 images restored to {out}\n"
    first = times(out)
    assert main(args) == 0
    assert capsys.readouterr().out == f"4 of 4 images restored to {out}, 4 of them by an earlier run\n"
    assert times(out) == first
    draw(photos / "new.png", 9)
    assert main(args) == 0
    assert capsys.readouterr().out == f"5 of 5 images restored to {out}, 4 of them by an earlier run\n"
    assert main([*args, "--overwrite"]) == 0
    assert capsys.readouterr().out == f"5 of 5 images restored to {out}\n"
    assert all(times(out)[name] > time for name, time in first.items())


def test_what_changed_is_made_anew(photos: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    restore(photos, out, model)
    before, status = (out / "a.png").read_bytes(), (photos / "a.png").stat()
    draw(photos / "a.png", 77)
    os.utime(photos / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns + 2000))
    assert restore(photos, out, model).skipped == 3
    assert (out / "a.png").read_bytes() != before
    os.utime(photos / "b.png")  # touched alone: the bytes are the same
    assert restore(photos, out, model).skipped == 4
    (out / "b.png").unlink()
    (out / "d.jpg").write_bytes(b"half")
    assert restore(photos, out, model).skipped == 2
    assert Image.open(out / "d.jpg").size == (24, 24)
    assert restore(photos, out, model, tile=16).skipped == 0
    save_network(model, "nafnet")
    assert restore(photos, out, model).skipped == 0
    assert restore(photos, out, model).skipped == 4


def test_other_names_in_the_same_folder_are_other_results(photos: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    restore(photos, out, model)
    assert restore(photos, out, model, suffix="_r").skipped == 0
    assert restore(photos, out, model, ext="tif").skipped == 0
    for settings in ({}, {"suffix": "_r"}, {"ext": "tif"}):
        assert restore(photos, out, model, **settings).skipped == 4


def test_a_failed_photo_is_tried_again(photos: Path, model: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", (photos / "a.png").read_bytes()
    (photos / "a.png").write_bytes(whole[:200])
    done = restore(photos, out, model)
    assert (done.count, [*done.failed], done.skipped) == (3, ["a.png"], 0)
    done = restore(photos, out, model)
    assert (done.count, [*done.failed], done.skipped) == (3, ["a.png"], 3)
    (photos / "a.png").write_bytes(whole)
    assert restore(photos, out, model) == Restored(4, {}, 3)


def test_files_of_others_are_replaced_and_named(
    photos: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"somebody's")
    with caplog.at_level(logging.WARNING, logger="gmd_ray"):
        assert restore(photos, out, model) == Restored(4, {}, 0)
    [line] = [record.getMessage() for record in caplog.records]
    assert "1 files lie where results go" in line
    assert line.endswith("replaced: a.png")
    assert Image.open(out / "a.png").size == (24, 24)


def test_a_stopped_run_is_taken_up(
    photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while the third result is written: no part of it is there, and the first two are known."""
    out, written = tmp_path / "out", []

    def sync(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 4:  # the first tried whether the folder can be written
            raise KeyboardInterrupt

    args = ["restore", "-i", str(photos), "-o", str(out), "-m", str(model), "student.pool.batch_size=1"]
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", sync)
        assert main(args) == ExitCode.INTERRUPTED
    assert "the same command takes up where this one left off" in capsys.readouterr().err
    assert sorted(path.name for path in out.rglob("*")) == [RECORD_FILE, "a.png", "b.png"]
    assert main(args) == 0
    assert "2 of them by an earlier run" in capsys.readouterr().out


def test_a_killed_run_leaves_nothing_that_counts_as_finished(photos: Path, model: Path, tmp_path: Path) -> None:
    """Killed before the record was saved: the results are there, unknown, and are made anew."""
    out = tmp_path / "out"
    restore(photos, out, model)
    record = (out / RECORD_FILE).read_text().splitlines()
    (out / RECORD_FILE).write_text("\n".join(record[:1]) + '\n{"name": "b.p')
    (out / ".tmp-0123").write_bytes(b"half")
    assert restore(photos, out, model) == Restored(4, {}, 1)
    assert {json.loads(line)["name"] for line in (out / RECORD_FILE).read_text().splitlines()} == {*times(out)}


def test_a_full_disk_ends_the_run_in_one_line(
    photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gmd_ray.folders.restore_worker.put", full)
    with pytest.raises(GmdError, match=r"out: cannot be written any more: No space left on device"):
        restore(photos, tmp_path / "out", model)


class Counted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(x.shape))
        if self.broken is not None and len(x) > 1:
            raise RuntimeError("no batches, please")
        return x * self.weight

    broken: str | None = None


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    network = Counted()
    monkeypatch.setattr("gmd_ray.students.load_student", lambda cfg: ModuleStudent(cfg, network))
    return network


def test_photos_of_one_size_go_through_together(photos: Path, tmp_path: Path, counted: Counted, model: Path) -> None:
    for i in range(3):
        draw(photos / f"large{i}.png", i, side=40)
    done = restore(photos, tmp_path / "out", model)
    assert done.count == 7
    assert counted.seen == [(4, 3, 24, 24), (3, 3, 40, 40)]
    for name in ("a.png", "deep/c.png", "large2.png"):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / name)), np.asarray(Image.open(photos / name)))


def test_a_batch_that_breaks_is_restored_one_by_one(
    photos: Path, tmp_path: Path, counted: Counted, model: Path
) -> None:
    counted.broken = "yes"
    assert restore(photos, tmp_path / "out", model) == Restored(4, {})
    assert [shape[0] for shape in counted.seen] == [4, 1, 1, 1, 1]


def test_large_photos_are_alone(tmp_path: Path, counted: Counted, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(5):
        draw(tmp_path / "photos" / f"{i}.png", i, side=32)
    monkeypatch.setattr("gmd_ray.folders.restore._BATCH_SIDE", 16)  # 8 of these are two of those
    restore(tmp_path / "photos", tmp_path / "out", model)
    assert [shape[0] for shape in counted.seen] == [2, 2, 1]


def test_tiles_and_file_names_are_told_as_it_goes(
    tmp_path: Path, counted: Counted, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "photos").mkdir()
    draw(tmp_path / "photos" / "wide\n.png", 0, side=96)
    cfg = Config()
    cfg.student.path, cfg.student.device, cfg.student.tile, cfg.student.tile_overlap = str(model), "cpu", 32, 8
    cfg.log_interval_s = 1e-6
    with caplog.at_level(logging.INFO, logger="gmd_ray"):
        restore_folder(cfg, str(tmp_path / "photos"), str(tmp_path / "out"))
    lines = [record.getMessage() for record in caplog.records]
    assert any("restore 0/1 img (0%)" in line and r"tiles 8/16 of wide\n.png" in line for line in lines)
    assert "restore 1/1 img (100%)" in lines[-1]
    assert counted.seen[0] == (8, 3, 32, 32)

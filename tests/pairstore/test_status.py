"""The state of a run, as a person who waits for it reads it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gmd_ray.cli import main
from gmd_ray.errors import ExitCode
from gmd_ray.pairstore.lock import StoreLock
from gmd_ray.pairstore.status import read_status
from gmd_ray.pairstore.store import PairStore
from tests.generation.shelf import failed_row, fill, finish, lock, ok_row

ROWS = [
    *(ok_row(f"{i}.png", 5.0) for i in range(4)),
    failed_row("f.png"),
    failed_row("g.png", "project", "OutOfMemoryError"),
    failed_row("h.png"),
]


@pytest.fixture
def store(tmp_path: Path) -> PairStore:
    store = PairStore(str(tmp_path / "run" / "pairs"))
    fill(store, [ROWS[:3], ROWS[3:]])
    finish(store, ROWS)
    return store


def test_after_a_run(store: PairStore) -> None:
    status = read_status(store)
    assert (status.ok, status.failed, status.inputs, status.finished) == (4, 3, 7, True)
    assert list(status.failures.items()) == [("read: DataError", 2), ("project: OutOfMemoryError", 1)]
    assert status.failed_ids == {"read: DataError": ["f.png", "h.png"], "project: OutOfMemoryError": ["g.png"]}
    assert "  2 read: DataError (f.png, h.png)\n" in str(status)
    assert (status.images_per_second, status.eta_s, status.holder) == (2.0, None, None)
    assert "nobody is at work here; the last run finished" in str(status)


def test_during_a_run(store: PairStore) -> None:
    """3 of 20 rows were there before; 4 came within the 8 s since it began to stream: half an image a second."""
    store.delete("manifest.json")
    saved = store.read("settings.json")
    store.write("settings.json", {**saved, "inputs": {"count": 20, "limit": None}})
    Path(store.rows_path, ".tmp-1").write_bytes(b"being written")
    earlier = {"began": time.time() - 500, "before": 0, "images": 3, "seconds": 99.0}
    store.write("runs.json", [earlier])
    lock(store, since=9.0)
    assert read_status(store).images_per_second is None, "it has not come to the stream yet"
    store.write("runs.json", [earlier, {"began": time.time() - 8, "before": 3, "images": 0, "seconds": 0.0}])
    status = read_status(store)
    assert status.images_per_second == pytest.approx(0.5, rel=0.1)
    assert status.eta_s == pytest.approx(13 / 0.5, rel=0.1)
    text = str(status)
    assert "7 of 20 rows (35%): 4 ok, 3 failed" in text
    assert f"process {os.getppid()} on " in text
    assert "is at work since " in text
    assert "(9 s)" in text


def test_rows_of_images_that_left_the_inputs_are_not_counted(store: PairStore) -> None:
    store.delete("manifest.json")
    saved = store.read("settings.json")
    inputs = {"count": 5, "limit": 5, "stranger_ids": ["0.png", "h.png"]}
    store.write("settings.json", {**saved, "inputs": inputs})
    status = read_status(store)
    assert (status.ok, status.failed, status.inputs) == (3, 2, 5)
    assert "5 of 5 rows (100%)" in str(status)


def test_a_lock_that_nobody_holds(store: PairStore) -> None:
    lock(store, since=1000, beat=900)
    assert read_status(store).holder is None
    lock(store, pid=2**22 + 1)  # beyond Linux's largest process id
    assert read_status(store).holder is None


def test_the_lock_says_since_when(store: PairStore) -> None:
    before = time.time()
    with StoreLock(store.filesystem, store.path, store.url):
        holder = read_status(store).holder
        assert holder is not None
        assert before - 0.01 <= float(holder["since"]) <= time.time()
    assert read_status(store).holder is None


def test_torn_and_double_parts(store: PairStore) -> None:
    fill(store, [[ok_row("f.png", 4.0)]])  # done since it had failed; the old row is not dropped yet
    Path(store.rows_path, "part-torn.parquet").write_bytes(b"PAR1")
    status = read_status(store)
    assert (status.ok, status.failed, status.skipped) == (5, 2, 1)
    assert "gmd-ray verify names them" in str(status)


def test_the_verb(store: PairStore, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["status", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "4 ok, 3 failed" in out
    assert "2 read: DataError" in out
    assert main(["status", str(tmp_path)]) == ExitCode.DATA
    assert capsys.readouterr().err.strip().startswith(f"gmd-ray: {tmp_path}: no pair store here")

"""The store's files are atomic, free of duplicates and locked; the totals count them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from gmd_ray import storage as files_module
from gmd_ray.errors import BooksError, DataError
from gmd_ray.pairstore import lock as lock_module
from gmd_ray.pairstore.history import RunClock
from gmd_ray.pairstore.lock import StoreLock, StoreLockedError, StoreLostError
from gmd_ray.pairstore.parts import part_name, write_part
from gmd_ray.pairstore.schema import PAIR_SCHEMA
from gmd_ray.pairstore.store import PairStore, store_url
from gmd_ray.pairstore.totals import check_totals, find_removed_inputs
from gmd_ray.storage import put


def table(**status: str) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"id": key, "status": value, "lq": b"png", "score": 5.0 if value == "ok" else None}
            for key, value in status.items()
        ],
        schema=PAIR_SCHEMA,
    )


@pytest.fixture
def store(tmp_path: Path) -> PairStore:
    return PairStore(str(tmp_path / "run" / "pairs"))


def add(store: PairStore, **status: str) -> str:
    return write_part(store.filesystem, store.rows_path, table(**status))


def statuses(store: PairStore) -> list[tuple[str, str]]:
    return sorted((row["id"], row["status"]) for row in store.index().to_pylist())


def test_a_part_is_named_after_its_rows_and_sorted(store: PairStore) -> None:
    name = add(store, b="ok", a="ok")
    assert add(store, a="failed", b="ok") == name == part_name(["b", "a"])  # written again: replaced
    assert statuses(store) == [("a", "failed"), ("b", "ok")]
    file = pq.ParquetFile(Path(store.rows_path, name))
    assert file.read()["id"].to_pylist() == ["a", "b"]
    codecs = {
        file.metadata.row_group(0).column(i).path_in_schema: file.metadata.row_group(0).column(i).compression
        for i in range(19)
    }
    assert (codecs["lq"], codecs["id"]) == ("UNCOMPRESSED", "ZSTD")
    assert part_name(["ab", "c"]) != part_name(["a", "bc"])


def test_the_index_of_many_parts_is_read_in_groups(store: PairStore) -> None:
    parts = {f"k{n:03d}": add(store, **{f"k{n:03d}": "ok" if n % 3 else "failed"}) for n in range(150)}
    add(store, k007="ok", extra="ok")  # k007 twice, in parts that are not of one group
    rows = store.index()
    assert rows["id"].num_chunks == 3  # a chunk for each part would take more memory than the rows
    assert {row["id"]: row["__filename"].rsplit("/")[-1] for row in rows.to_pylist()}.items() >= {
        (key, part) for key, part in parts.items() if key != "k007"
    }
    assert store.drop_duplicates() == 1
    assert store.index()["id"].value_counts().field("counts").to_pylist() == [1] * 151
    assert sum(status == "failed" for _, status in statuses(store)) == 50
    Path(store.rows_path, "part-zz.parquet").write_bytes(b"torn")
    store.refresh()
    with pytest.raises(DataError, match="part-zz"):
        store.index()


def test_nothing_half_written_is_seen(store: PairStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    add(store, a="ok")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        add(store, b="ok")
    assert os.listdir(store.rows_path) == [part_name(["a"])]


def test_temporary_files_of_killed_writers_are_removed(store: PairStore) -> None:
    name = add(store, a="ok")
    Path(store.rows_path, ".tmp-0123").write_bytes(b"half")
    assert statuses(store) == [("a", "ok")]
    store.remove_temp_files()
    assert os.listdir(store.rows_path) == [name]


def test_digests_are_read_from_the_parts_that_hold_them(store: PairStore) -> None:
    for key in "abc":
        rows = table(**{key: "ok"})
        digest = pa.array([f"digest of {key}"])
        rows = rows.set_column(rows.schema.get_field_index("digest"), "digest", digest)
        write_part(store.filesystem, store.rows_path, rows)
    add(store, d="failed")
    index = store.index()
    Path(store.rows_path, part_name(["b"])).write_bytes(b"not asked for")
    assert index.num_rows == 4
    assert store.digests(["a", "d", "gone"]) == {"a": "digest of a", "d": None}
    with pytest.raises(DataError, match="a part file cannot be read"):
        store.digests(["b"])


def test_a_foreign_part_is_named(store: PairStore) -> None:
    add(store, a="ok")
    Path(store.rows_path, "part-foreign.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"part-foreign\.parquet") as caught:
        store.index()
    assert "\n" not in str(caught.value)


def test_documents(store: PairStore) -> None:
    assert store.read("settings.json") is None
    store.write("settings.json", {"a": 1})
    assert store.read("settings.json") == {"a": 1}
    put(store.filesystem, f"{store.path}/settings.json", b"{")
    with pytest.raises(DataError, match=r"settings\.json: not a JSON document"):
        store.read("settings.json")


def test_store_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_url("runs/a") == f"{tmp_path}/runs/a/pairs"
    assert store_url("s3://bucket/a/?endpoint_override=x") == "s3://bucket/a/pairs?endpoint_override=x"


def test_the_store_lives_on_any_filesystem(tmp_path: Path) -> None:
    """Not a LocalFileSystem: the path that object stores take."""
    store = PairStore("memory://bucket/run/pairs")
    assert not isinstance(store.filesystem, fs.LocalFileSystem)
    with StoreLock(store.filesystem, store.path, store.url):
        add(store, a="ok", b="failed")
        add(store, a="ok")
        assert store.drop_duplicates() == 1
        assert store.drop_failed({"b"}) == 1
        assert statuses(store) == [("a", "ok")]
    assert store.read("lock.json") is None


def held_by(store: PairStore, *, pid: int, host: str, age: float, **more: str) -> None:
    beat = {"token": "other", "pid": str(pid), "host": host, "beat": f"{time.time() - age:.3f}", **more}
    put(store.filesystem, f"{store.path}/lock.json", json.dumps(beat).encode())


def locked(store: PairStore) -> StoreLock:
    return StoreLock(store.filesystem, store.path, store.url)


def test_lock_refuses_the_living_and_buries_the_dead(store: PairStore, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    held_by(store, pid=os.getppid(), host=socket.gethostname(), age=5)
    with (
        pytest.raises(StoreLockedError, match=f"process {os.getppid()} on .* is at work here .seen 5 s ago."),
        locked(store),
    ):
        pass
    held_by(store, pid=dead.pid, host="elsewhere", age=5)  # a process of another host cannot be looked for
    with pytest.raises(StoreLockedError, match="on elsewhere is at work"), locked(store):
        pass
    monkeypatch.setattr(lock_module, "BEAT_S", 0.05)
    held_by(store, pid=dead.pid, host=socket.gethostname(), age=5, pids="pid:[1]")  # a container that started anew
    with locked(store) as lock:
        assert store.read("lock.json")["token"] == lock.token
    for pid, host, age in (
        (dead.pid, socket.gethostname(), 5),
        (os.getpid(), socket.gethostname(), 5),  # the number of a process before this one, in another container
        (dead.pid, "elsewhere", 61),
        (1, socket.gethostname(), 61),
    ):
        held_by(store, pid=pid, host=host, age=age)
        with locked(store) as lock:
            assert store.read("lock.json")["token"] == lock.token
        assert store.read("lock.json") is None


def test_a_living_driver_whose_clock_is_behind_keeps_its_lock(
    store: PairStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_by(store, pid=1, host="elsewhere", age=500)
    # While this one watches, the other writes its next beat: by its own clock.
    monkeypatch.setattr(lock_module.time, "sleep", lambda _: held_by(store, pid=1, host="elsewhere", age=490))
    with pytest.raises(StoreLockedError, match=r"process 1 on elsewhere is at work here, its clock is 490 s behind"):
        locked(store).__enter__()
    assert store.read("lock.json")["token"] == "other"


def test_a_living_driver_in_another_container_of_this_host_keeps_its_lock(
    store: PairStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "BEAT_S", 0.4)
    lock = {"pid": 1, "host": socket.gethostname(), "pids": "pid:[1]"}
    held_by(store, age=5, **lock)
    threading.Timer(0.2, lambda: held_by(store, age=0, **lock)).start()
    with pytest.raises(StoreLockedError, match=r"process 1 on .* is at work here"), locked(store):
        pass


@pytest.mark.parametrize("content", [b"", b"[]", b'{"token": "x"}'])
def test_a_lock_that_is_none_is_one_line(store: PairStore, content: bytes) -> None:
    put(store.filesystem, f"{store.path}/lock.json", content)
    with pytest.raises(DataError, match=r"lock\.json: not a lock of this program .*; remove it"), locked(store):
        pass


def test_of_two_drivers_at_once_the_later_stands(store: PairStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module.time, "sleep", lambda _: held_by(store, pid=1, host="other", age=0))
    with pytest.raises(StoreLockedError, match="at the same moment"), locked(store):
        pass
    assert store.read("lock.json")["token"] == "other"


def test_a_lost_lock_is_noticed_and_the_new_holder_left_alone(
    store: PairStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "BEAT_S", 0.05)
    with locked(store) as lock:
        first = store.read("lock.json")["beat"]
        end = time.monotonic() + 10
        while store.read("lock.json")["beat"] == first:  # it beats
            assert time.monotonic() < end
        lock.check()
        held_by(store, pid=1, host="other", age=0)
        while not lock.lost:
            assert time.monotonic() < end
        with pytest.raises(StoreLostError, match="took this store over"):
            lock.check()
    assert store.read("lock.json")["token"] == "other"


def test_totals_match_the_inputs() -> None:
    rows = table(a="ok", b="ok", c="failed", gone="ok")
    rows = rows.set_column(rows.schema.get_field_index("score"), "score", pa.array([4.2, 4.1, None, 9.0], pa.float32()))

    def close(rows: pa.Table, *inputs: str, threshold: float = 4.2, higher: bool = True):  # type: ignore[no-untyped-def]
        return check_totals(rows, inputs, resumed=1, threshold=threshold, higher_is_better=higher, seconds=2.0)

    books = close(rows, "a", "b", "c")
    assert (books.accepted, books.rejected, books.failed, books.removed_inputs) == (1, 1, 1, 1)
    assert str(books) == "3 inputs = 1 accepted + 1 rejected + 1 failed at threshold 4.2 (1 from earlier runs, 2 s)"
    assert close(rows, "a", "b", "c", threshold=4.1, higher=False).accepted == 1
    with pytest.raises(BooksError, match=r"1 of 4 inputs have no row \(lost\)"):
        close(rows, "a", "b", "c", "lost")
    with pytest.raises(BooksError, match=r"1 ids have more than one row \(a\); `gmd-ray verify`"):
        close(pa.concat_tables([rows, rows.slice(0, 1)]), "a", "b", "c")
    with pytest.raises(BooksError, match=r"1 ids have more than one row \(gone\)"):
        close(pa.concat_tables([rows, rows.slice(3, 1)]), "a", "b", "c")
    assert close(rows.slice(0, 0)).inputs == 0
    assert find_removed_inputs(rows, ["c", "a"]) == ["b", "gone"]
    with pytest.raises(BooksError, match="0 ok"):
        close(table(a="odd"), "a")


def test_rows_without_a_name_are_refused_and_kept(store: PairStore) -> None:
    add(store, a="ok")
    other = Path(store.rows_path, "part-00000-spark.parquet")
    pq.write_table(pa.table({"x": [1, 2, 3]}), other)
    with pytest.raises(DataError, match=r"part-00000-spark.parquet: foreign, it has rows without an id"):
        store.drop_duplicates()
    assert other.exists()


def test_a_clock_that_cannot_be_written_ends_no_run(
    store: PairStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = RunClock(store, before=0)
    monkeypatch.setattr(files_module, "PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(files_module.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    clock.save()
    assert "runs.json: not written: [Errno 28] No space left" in caplog.text

"""A photo that changed under its own name is another photo."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmd_ray.errors import DataError
from gmd_ray.images.listing import ImageFile, list_images, read_file
from gmd_ray.pairstore.audit import changes
from gmd_ray.pairstore.audit.changes import changed_photos
from gmd_ray.pairstore.audit.verify import Verified, verify
from gmd_ray.pairstore.store import PairStore
from tests.generation.shelf import failed_row, file_columns, fill, finish, ok_row

IDS = ("a.png", "b.png", "c.png", "d/e.png", "f.png")


def photo(key: str, version: int = 0) -> bytes:
    """Content of one length, whatever the version."""
    return f"{key} version {version}".encode().ljust(40)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for key in IDS:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(photo(key))
        age(folder / key, 1000)
    return folder


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture
def store(tmp_path: Path, photos: Path) -> PairStore:
    """Two parts; f.png failed as it was decoded."""
    store = PairStore(str(tmp_path / "run" / "pairs"))
    told = {file.id: file_columns(file) for file in list_images(str(photos))}
    rows = [ok_row(key, 5.0, **told[key]) for key in IDS[:-1]] + [failed_row("f.png") | told["f.png"]]
    fill(store, [rows[:2], rows[2:]])
    finish(store, rows, photos=photos)
    return store


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the photos that are read."""
    seen: list[str] = []

    def noted(uri: str) -> bytes:
        seen.append(uri.rpartition("/")[2])
        return read_file(uri)

    monkeypatch.setattr(changes, "read_file", noted)
    return seen


def changed(store: PairStore, photos: Path | str, limit: int | None = None) -> list[str]:
    store.refresh()
    return changed_photos(store, list_images(str(photos), limit))


def words(found: Verified) -> str:
    return "\n".join(map(str, found.findings))


def test_an_unchanged_folder_is_listed_and_not_read(store: PairStore, photos: Path, reads: list[str]) -> None:
    assert changed(store, photos) == []
    assert reads == []
    assert not Path(store.path, changes.STAMPS_FILE).exists()


def another_size(path: Path) -> None:
    path.write_bytes(photo("x") + b"!")


def another_size_and_the_old_time(path: Path) -> None:
    before = path.stat()
    path.write_bytes(photo("x") + b"!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def another_content_of_one_size(path: Path) -> None:
    path.write_bytes(photo(path.name, 1))


def another_content_and_an_older_time(path: Path) -> None:
    path.write_bytes(photo(path.name, 1))
    age(path, 1e6)


@pytest.mark.parametrize(
    "change",
    [
        another_size,
        another_size_and_the_old_time,
        another_content_of_one_size,
        another_content_and_an_older_time,
    ],
)
def test_another_photo_under_an_old_name_is_found(
    store: PairStore, photos: Path, change: Callable[[Path], None]
) -> None:
    for key in ("b.png", "d/e.png", "f.png"):  # a failed row too: what could not be read may be readable now
        change(photos / key)
    found = verify(store)
    assert "3 photos are not those that their rows were made of (b.png, d/e.png, f.png); run generate again" in str(
        found
    )
    assert changed(store, photos) == ["b.png", "d/e.png", "f.png"]
    assert changed(store, photos, limit=2) == ["b.png"], "beyond the limit they are strangers"
    store.drop(["b.png", "d/e.png", "f.png"])
    assert sorted(store.index()["id"].to_pylist()) == ["a.png", "c.png"]
    assert changed(store, photos) == []


def test_a_photo_that_was_only_touched_is_read_once(store: PairStore, photos: Path, reads: list[str]) -> None:
    for key in ("a.png", "b.png"):
        age(photos / key, 10)
    assert verify(store).findings == []
    assert sorted(reads) == ["a.png", "b.png"]
    reads.clear()
    assert not Path(store.path, changes.STAMPS_FILE).exists(), "verify changes nothing"
    for expected in (["a.png", "b.png"], []):
        assert changed(store, photos) == []
        assert sorted(reads) == expected
        reads.clear()
    assert verify(store).findings == []
    assert reads == []

    # What was confirmed of one content says nothing of the next.
    (photos / "a.png").write_bytes(photo("a.png", 1))
    age(photos / "b.png", 5)
    assert changed(store, photos) == ["a.png"]
    assert sorted(reads) == ["a.png", "b.png"]
    reads.clear()
    assert changed(store, photos) == ["a.png"], "until its row is made anew"
    assert reads == ["a.png"]


def test_a_comparison_that_is_cut_off_keeps_what_it_found(
    store: PairStore, photos: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in IDS:
        age(photos / key, 10)
    monkeypatch.setattr(changes, "_AT_ONCE", 2)
    monkeypatch.setattr(changes.PairStore, "digests", stops_at(2))
    with pytest.raises(KeyboardInterrupt):
        changed(store, photos)
    monkeypatch.undo()
    first = set(changes.confirmed_stamps(store)["id"].to_pylist())
    assert len(first) == 2
    assert changed(store, photos) == []
    assert set(changes.confirmed_stamps(store)["id"].to_pylist()) == set(IDS)


def stops_at(call: int) -> Callable[..., Any]:
    asked: list[object] = []
    whole = PairStore.digests

    def digests(self: PairStore, ids: list[str]) -> dict[str, str | None]:
        asked.append(ids)
        if len(asked) == call:
            raise KeyboardInterrupt
        return whole(self, ids)

    return digests


def test_a_folder_that_was_copied_is_read_once(
    store: PairStore, photos: Path, tmp_path: Path, reads: list[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(photos, copy, copy_function=shutil.copyfile)  # without the times
    assert changed(store, copy) == []
    assert len(reads) == 5
    assert changed(store, copy) == []
    assert len(reads) == 5


def test_the_deep_look_reads_all_photos_and_sees_through_the_old_time(store: PairStore, photos: Path) -> None:
    stat = (photos / "c.png").stat()
    another_content_of_one_size(photos / "c.png")
    os.utime(photos / "c.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert verify(store).findings == []
    found = words(verify(store, deep=True))
    assert (
        "1 photos are not those that their rows were made of (c.png); size and time are the old ones: `touch`" in found
    )


def test_rows_that_are_older_than_the_columns_are_taken_for_unchanged(
    store: PairStore, photos: Path, caplog: pytest.LogCaptureFixture, reads: list[str]
) -> None:
    [part, *_] = sorted(Path(store.rows_path).glob("part-*"))
    table = pq.read_table(part, partitioning=None)
    pq.write_table(table.drop_columns(["bytes", "modified", "digest"]), part)
    for key in IDS:
        age(photos / key, 10)
    caplog.set_level(logging.INFO)
    assert changed(store, photos) == []
    assert f"{table.num_rows} rows do not record size and time of their photo" in caplog.text
    assert len(reads) == 5 - table.num_rows
    found = verify(store)
    assert found.findings == []
    n = table.num_rows
    assert found.notes == [f"{n} rows have no size and time of their photo: whether it changed is not known"]


def test_a_file_that_could_not_be_read_is_tried_again_once_it_changes(photos: Path, tmp_path: Path) -> None:
    """Its row has size and time as listed, and no digest."""
    store = PairStore(str(tmp_path / "pairs"))
    [first, *_] = list_images(str(photos))
    fill(store, [[failed_row("a.png") | {"bytes": first.size, "modified": first.modified}]])
    assert changed(store, photos) == []
    assert verify(store, deep=True).findings == verify(store).findings
    age(photos / "a.png", 10)
    assert changed(store, photos) == ["a.png"]


def test_a_photo_that_cannot_be_compared_keeps_its_row(
    store: PairStore, photos: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(uri: str) -> bytes:
        raise DataError("cannot be read today")

    age(photos / "b.png", 10)
    monkeypatch.setattr(changes, "read_file", unreadable)
    assert changed(store, photos) == []
    assert "1 photos could not be read to be compared with their rows" in caplog.text
    assert "b.png: cannot be read today" in caplog.text
    assert "1 photos could not be read to be compared (b.png)" in verify(store).notes
    monkeypatch.undo()
    (photos / "b.png").write_bytes(photo("b.png", 1))
    assert changed(store, photos) == ["b.png"]


def test_a_run_that_was_killed_between_drop_and_redo_leaves_no_row_twice(
    store: PairStore, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gmd_ray.pairstore import parts

    another_content_of_one_size(photos / "d/e.png")
    with monkeypatch.context() as patch:
        patch.setattr(parts, "remove", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.drop(changed(store, photos))
    store.refresh()
    assert store.index().num_rows == 7, "the shorter part is there beside the old one"
    store.drop_duplicates()
    assert changed(store, photos) == ["d/e.png"]
    store.drop(["d/e.png"])
    assert sorted(store.index()["id"].to_pylist()) == ["a.png", "b.png", "c.png", "f.png"]


def test_a_damaged_side_file_only_costs_reading(store: PairStore, photos: Path, reads: list[str]) -> None:
    age(photos / "a.png", 10)
    assert changed(store, photos) == []
    Path(store.path, changes.STAMPS_FILE).write_bytes(b"PAR1 half")
    assert changed(store, photos) == []
    assert reads == ["a.png", "a.png"]
    assert pa.table(changes.confirmed_stamps(store))["id"].to_pylist() == ["a.png"]


def test_a_million_rows_are_compared_in_columns() -> None:
    """No Python object for each row that is unchanged."""
    count = 200_000
    ids = [f"folder/{n:08d}.png" for n in range(count)]
    files = [ImageFile(key, key, n, None) for n, key in enumerate(ids)]
    sizes = pa.array(range(count), pa.int64())
    rows = pa.table({"id": ids, "bytes": sizes, "modified": pa.nulls(count, pa.timestamp("us", "UTC"))})
    compared = changes.Comparison(rows, files, changes._STAMPS.empty_table())
    assert (compared.changed, compared.doubtful, compared.unknown) == ([], [], 0)

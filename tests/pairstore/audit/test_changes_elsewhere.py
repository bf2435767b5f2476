"""Photos that change on storage that says less of them than a local disk."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from gmd_ray.images import lmdb_store
from gmd_ray.images.listing import ImageFile, list_images
from gmd_ray.pairstore.audit import changes
from gmd_ray.pairstore.audit.changes import changed_photos
from gmd_ray.pairstore.store import PairStore
from gmd_ray.storage import open_filesystem
from tests.generation.shelf import file_columns, fill, ok_row


def photo(key: str, version: int = 0) -> bytes:
    """Content of one length, whatever the version."""
    return f"{key} version {version}".encode().ljust(40)


def test_storage_without_times_tells_by_size_and_the_deep_look_by_digest(tmp_path: Path) -> None:
    filesystem, root = open_filesystem("memory://changes/photos")

    def put(key: str, data: bytes) -> None:
        filesystem.create_dir(root)
        with filesystem.open_output_stream(f"{root}/{key}") as stream:
            stream.write(data)

    for key in ("a.png", "b.png"):
        put(key, photo(key))
    files = [ImageFile(file.id, file.uri, file.size, None) for file in list_images("memory://changes/photos")]
    store = PairStore(str(tmp_path / "pairs"))
    fill(store, [[ok_row(file.id, 5.0, **file_columns(file)) for file in files]])
    assert changed_photos(store, files) == []
    put("a.png", photo("a.png", 1))
    put("b.png", photo("b.png") + b"!")
    files = [ImageFile(file.id, file.uri, file.size, None) for file in list_images("memory://changes/photos")]
    assert changed_photos(store, files) == ["b.png"]
    deep = changes.Comparison(store.index(), files, changes.confirmed_stamps(store), every=True)
    deep.read(lambda ids: store.digests(ids))
    assert sorted(deep.changed) == ["a.png", "b.png"]
    assert deep.disguised == ["a.png"]


def test_an_lmdb_that_was_written_anew_is_compared_image_by_image(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    folder = tmp_path / "photos.lmdb"

    def write(version: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with lmdb.open(str(folder), map_size=2**20) as environment, environment.begin(write=True) as transaction:
            transaction.put(b"same", photo("same"))
            transaction.put(b"other", photo("other", version))
        lines = [f"{name}.png (8,8,3) 1\n" for name in ("same", "other")]
        (folder / "meta_info.txt").write_text("".join(lines))

    write(0)
    store = PairStore(str(tmp_path / "pairs"))
    fill(store, [[ok_row(file.id, 5.0, **file_columns(file)) for file in list_images(str(folder))]])
    assert changed_photos(store, list_images(str(folder))) == []
    write(1)
    os.utime(folder / "data.mdb", (time.time() + 10,) * 2)  # clocks of file systems are coarse
    lmdb_store._environment.cache_clear()  # another run, another process
    assert changed_photos(store, list_images(str(folder))) == ["other.png"]

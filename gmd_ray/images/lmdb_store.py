"""BasicSR's LMDB stores: a folder `NAME.lmdb` with data.mdb and meta_info.txt, read only.

A line of meta_info.txt is `name.png (height,width,channels) level`; the key is the name without its ending, the value
the file's bytes (BasicSR, docs/DatasetPreparation.md). `lmdb` is an optional package.
"""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path, PurePosixPath
from typing import Any

from gmd_ray.errors import DataError

_ENDING = ".lmdb"

_opening = threading.Lock()
"""LMDB refuses to open a store twice in one process, as two threads with an empty cache would."""


def is_store(url: str) -> bool:
    """Whether a local path is such a folder."""
    return url.rstrip("/").endswith(_ENDING) and os.path.isfile(os.path.join(os.path.expanduser(url), "data.mdb"))


def split_uri(uri: str) -> tuple[str, str] | None:
    """(folder, name) of a URI that `list_store` gave; None for any other."""
    folder, ending, name = uri.rpartition(f"{_ENDING}/")
    store = f"{folder}{_ENDING}"
    return (store, name) if ending and "://" not in uri and is_store(store) else None


def list_store(path: str) -> dict[str, str]:
    """Id -> URI of every image that meta_info.txt names.

    Raises:
        DataError: where it is missing, or a line of it is not as BasicSR writes them.
    """
    root = os.path.abspath(os.path.expanduser(path))
    meta = Path(root, "meta_info.txt")
    if not meta.is_file():
        raise DataError(f"{meta}: no such file; it names the images of an LMDB, make it as BasicSR does")
    found = {}
    for line in meta.read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(" (")
        if line.strip():
            if not rest or "." not in name:
                raise DataError(f"{meta}: {line!r} is not `name.png (height,width,channels) level`")
            found[name] = f"{root}/{name}"
    if not found:
        raise DataError(f"{meta}: names no image")
    return found


def read_image(store: str, name: str) -> bytes:
    """The bytes of one image.

    Raises:
        DataError: where it is not there, the store is damaged, or `lmdb` is not installed.
    """
    key = str(PurePosixPath(name).with_suffix(""))
    with _opening:
        environment = _environment(store)
    with environment.begin(write=False) as transaction:
        data = transaction.get(key.encode())
    if data is None:
        raise DataError(f"{store}: no image {key!r}, which meta_info.txt names")
    return bytes(data)


@functools.lru_cache(maxsize=8)
def _environment(store: str) -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise DataError(f"{store}: reading LMDB needs the lmdb package; pip install 'gmd_ray[lmdb]'") from error
    try:
        # No lock file: a store may lie on a disk that cannot be written, and any number of threads may read.
        return lmdb.open(store, readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise DataError(f"{store}: cannot be opened as LMDB: {' '.join(str(error).split())}") from error


def _after_fork() -> None:
    """An open LMDB does not survive a fork, nor does a lock that another thread held."""
    global _opening
    _opening = threading.Lock()
    _environment.cache_clear()


os.register_at_fork(after_in_child=_after_fork)

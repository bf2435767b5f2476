"""BasicSR's LMDB stores: a folder `NAME.lmdb` with data.mdb and meta_info.txt, read only.

A line of meta_info.txt is `name.png (height,width,channels) level`; the key is the name without its ending, the value
the file's bytes (as BasicSR prepares its data sets). `lmdb` is an optional package.
"""

from __future__ import annotations

import functools
import os
import re
import threading
from pathlib import Path, PurePosixPath
from typing import Any

from gmd_ray.errors import DataError
from gmd_ray.images.safe_paths import safe_relative
from gmd_ray.text import one_line

_ENDING = ".lmdb"
_LINE = re.compile(r"(?P<name>\S.*\.[^./ ]+) \(\d+, ?\d+(?:, ?\d+)?\)(?: -?\d+)?")
"""One line of meta_info.txt. Names may contain spaces and brackets; the last brackets hold the shape."""

_opening = threading.Lock()
"""Held while a store is opened: LMDB refuses to open one twice in a process, which two threads would do."""


def is_store(url: str) -> bool:
    """Tell whether a local path is an LMDB folder of BasicSR."""
    return url.rstrip("/").endswith(_ENDING) and os.path.isfile(os.path.join(os.path.expanduser(url), "data.mdb"))


def split_uri(uri: str) -> tuple[str, str] | None:
    """Split a URI of `list_store` into (folder, name); None for any other URI."""
    if "://" in uri:
        return None
    mark = f"{_ENDING}/"
    end = uri.find(mark)
    while end >= 0:  # the first store on the path counts: names in it may contain `.lmdb/` too
        store, name = uri[: end + len(_ENDING)], uri[end + len(mark) :]
        if is_store(store):
            return store, name
        end = uri.find(mark, end + 1)
    return None


def list_store(path: str) -> dict[str, str]:
    """List every image that meta_info.txt names, as id -> URI.

    Raises:
        DataError: meta_info.txt is missing, not text or names no image; a line differs from BasicSR's form; a name is
            not a path below a folder; or two names have one key.
    """
    root = os.path.abspath(os.path.expanduser(path))
    meta = Path(root, "meta_info.txt")
    try:
        text = meta.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{meta}: no such file; it names the images of an LMDB, make it as BasicSR does") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{meta}: cannot be read as UTF-8 text: {error}") from error
    uris: dict[str, str] = {}
    keys: dict[str, str] = {}
    for line in text.split("\n"):  # not splitlines(): a name may contain one of Unicode's other line separators
        line = line.rstrip(" \t\r")
        if not line:
            continue
        parsed = _LINE.fullmatch(line)
        if parsed is None:
            raise DataError(f"{meta}: {line!r} is not `name.png (height,width,channels) level`")
        try:
            name = safe_relative(parsed["name"])
        except DataError as error:
            raise DataError(f"{meta}: {error}") from error
        first = keys.setdefault(_key(name), name)
        if name in uris or first != name:
            raise DataError(f"{meta}: {first!r} and {name!r} are one image of the store; name it once")
        uris[name] = f"{root}/{name}"
    if not uris:
        raise DataError(f"{meta}: names no image")
    return uris


def _key(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def read_image(store: str, name: str) -> bytes:
    """Read the bytes of one image.

    Raises:
        DataError: the image is absent, the store is damaged, or `lmdb` is not installed.
    """
    key = _key(name)
    with _opening:
        environment = _environment(store)
    try:
        with environment.begin(write=False) as transaction:
            data = transaction.get(key.encode())
    except Exception as error:  # lmdb.Error (a damaged page, a key that is too long); the optional package is unbound
        raise DataError(f"{store}: {key!r} cannot be read: {one_line(error)}") from error
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
        # Without a lock file, a store on a read-only disk can be opened, and any number of threads may read it.
        return lmdb.open(store, readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise DataError(f"{store}: cannot be opened as LMDB: {one_line(error)}") from error


def _after_fork() -> None:
    """Forget open stores in a forked child: neither they nor a lock held by another thread survive the fork."""
    global _opening
    _opening = threading.Lock()
    _environment.cache_clear()


os.register_at_fork(after_in_child=_after_fork)

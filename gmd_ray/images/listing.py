"""Finding and reading images on any filesystem: local paths, s3://, gs://, and whatever fsspec knows."""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from posixpath import splitext
from urllib.parse import quote, unquote, urlsplit

from pyarrow import ArrowInvalid, fs

from gmd_ray.errors import ConfigError, DataError
from gmd_ray.images import lmdb_store
from gmd_ray.images.layouts import PublishedSet, parse_set

logger = logging.getLogger(__name__)

DECODED = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif", ".jp2"}
    | {".pbm", ".pgm", ".ppm", ".pnm"}
)
NOT_DECODED = frozenset({".heic", ".heif", ".dng", ".cr2", ".nef", ".arw"})
"""Photos that `decode_image` refuses: listed, so that they are accounted for as failed with the reason, unless a file
of the same name that can be read lies beside them, as cameras write both."""
EXTENSIONS = DECODED | NOT_DECODED

_ARROW_SCHEMES = ("s3", "gs", "gcs")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image of a folder."""

    id: str
    """Posix path relative to the folder: unique, and the same wherever the folder lies."""
    uri: str
    """What `read_file` takes: an absolute local path, or a URL."""
    size: int | None = None
    """Bytes, as the listing tells them; None where it does not."""
    modified: datetime | None = None
    """Time of the last change (UTC, whole microseconds), as the listing tells it; None where the storage has none.

    A file of an LMDB has that of its data.mdb."""


def open_filesystem(url: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or URL, and the path on it.

    Args:
        url: a local path (`~` allowed), `file://`, `s3://` or `gs://` as pyarrow reads them (percent-encoded, options
            such as `?endpoint_override=...` at the end), or any other scheme of fsspec, taken literally.
            Keep credentials in the environment: URLs are written to the pair store and to logs.

    Raises:
        DataError: for a scheme that is unknown, or whose driver is not installed.
    """
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if not scheme:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(url))
    if scheme == "file":
        return fs.LocalFileSystem(), os.path.abspath(unquote(url[len("file://") :]))
    if scheme in _ARROW_SCHEMES:
        parts = urlsplit(url)
        query = f"?{parts.query}" if parts.query else ""
        filesystem, bucket = _arrow_filesystem(f"{scheme}://{parts.netloc}{query}")
        return filesystem, f"{bucket}/{unquote(parts.path).strip('/')}".rstrip("/")
    return _fsspec_filesystem(url)


def list_images(url: str, limit: int | None = None) -> list[ImageFile]:
    """The images of a folder and its subfolders, sorted by id.

    Files are known by extension (`EXTENSIONS`, in any case). Anything with a component that starts with a dot is
    hidden and left out; links are followed. What was left out is counted in the log.

    Args:
        url: see `open_filesystem`; or a published set, as `gopro/train/blur@/datasets` (see `layouts`); or a local
            `NAME.lmdb` folder of BasicSR.
        limit: keep the first n.

    Raises:
        DataError: where the folder is missing, unreadable, or holds no image; where a published set is not whole.
        ConfigError: for a limit below 1, or a published set that is not known.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: give at least 1, or leave it out for all images")
    published = parse_set(url)
    if published is not None:
        return _list_published(*published)[:limit]
    if lmdb_store.is_store(url):
        stored = lmdb_store.list_store(url)
        changed = _microseconds(os.stat(os.path.join(os.path.expanduser(url), "data.mdb")).st_mtime_ns)
        return [ImageFile(key, stored[key], None, changed) for key in sorted(stored)][:limit]
    filesystem, root = open_filesystem(url)
    names, ignored = [], Counter[str]()
    infos = _files_below(filesystem, root, url)
    for name in infos:
        extension = splitext(name)[1]
        if name.startswith(".") or "/." in name:
            ignored["hidden"] += 1
        elif extension.lower() not in EXTENSIONS:
            ignored[extension or "no extension"] += 1
        else:
            names.append(name)
    raw = [name for name in names if splitext(name)[1].lower() in NOT_DECODED]
    if raw:
        readable = {stem for stem, extension in map(splitext, names) if extension.lower() in DECODED}
        doubles = {name for name in raw if splitext(name)[0] in readable}
        ignored["beside a file of the same name that can be read"] += len(doubles)
        names = [name for name in names if name not in doubles]
    if ignored:
        kinds = ", ".join(f"{kind}: {n}" for kind, n in ignored.most_common(5))
        logger.info("%s: %d files ignored (%s)", url, ignored.total(), kinds)
    if not names:
        raise DataError(f"{url}: no images ({', '.join(sorted(DECODED))}) among {ignored.total()} files")
    join = _joiner(url)
    return [_image_file(name, join(name), infos[name]) for name in sorted(names)[:limit]]


def _list_published(name: str, published: PublishedSet, root: str) -> list[ImageFile]:
    filesystem, base = open_filesystem(root)
    if filesystem.get_file_info(base).type != fs.FileType.Directory:
        raise DataError(f"{name}@{root}: no such folder as {root}; give the folder of the data sets, data.root=...")
    # What comes before the first star is one folder: REDS has three other sides beside it, of 24,000 files each.
    fixed = str(PurePosixPath(published.folder, *published.files.partition("*")[0].split("/")[:-1]))
    if filesystem.get_file_info(f"{base}/{fixed}").type != fs.FileType.Directory:
        raise published.missing(name, root, f"no folder {root}/{fixed}")
    found = {}
    infos = {}
    for below, info in _files_below(filesystem, f"{base}/{fixed}", f"{root}/{fixed}").items():
        path = f"{fixed}/{below}"[len(published.folder) + 1 :]
        key = published.image_id(path)
        if key is not None:
            found[key] = path
            infos[path] = info
    lines = read_file(_joiner(root)(published.listed.path)).decode() if published.listed else None
    chosen = published.select(name, root, found, lines)
    join = _joiner(root)
    return [_image_file(key, join(f"{published.folder}/{chosen[key]}"), infos[chosen[key]]) for key in sorted(chosen)]


def _image_file(key: str, uri: str, info: fs.FileInfo) -> ImageFile:
    return ImageFile(key, uri, info.size, _microseconds(info.mtime_ns))


def _microseconds(ns: int | None) -> datetime | None:
    """Whole microseconds: what a Parquet timestamp and a datetime both hold exactly."""
    if not ns or ns < 0:  # fsspec filesystems without a time give the epoch
        return None
    seconds, rest = divmod(ns // 1000, 10**6)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def read_file(uri: str) -> bytes:
    """The content of a file.

    Raises:
        DataError: where it does not exist. Other OSErrors pass: a network may recover.
    """
    stored = lmdb_store.split_uri(uri)
    if stored is not None:
        return lmdb_store.read_image(*stored)
    filesystem, path = open_filesystem(uri)
    try:
        with filesystem.open_input_stream(path, compression=None) as stream:
            return stream.read()
    except FileNotFoundError as error:
        raise DataError(f"{uri}: no such file") from error


def _files_below(filesystem: fs.FileSystem, root: str, url: str) -> dict[str, fs.FileInfo]:
    """Path relative to `root` -> what the listing tells of it, of all files."""
    try:
        kind = filesystem.get_file_info(root).type
        if kind == fs.FileType.NotFound:
            raise DataError(f"{url}: no such folder")
        if kind == fs.FileType.File:
            raise DataError(f"{url}: is a file; give the folder that holds the images")
        infos = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
        return {info.path[len(root) :].lstrip("/"): info for info in infos if info.type == fs.FileType.File}
    except UnicodeDecodeError as error:
        raise DataError(f"{url}: a file name is not valid UTF-8 ({error.object!r}); rename it") from error
    except OSError as error:
        raise DataError(f"{url}: cannot be listed: {' '.join(str(error).split())}") from error


def _joiner(url: str) -> Callable[[str], str]:
    """What makes a URI of the name of a file below this folder."""
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme in _ARROW_SCHEMES:
        folder, mark, query = url.partition("?")
        return lambda name: f"{folder.rstrip('/')}/{quote(name)}{mark}{query}"
    if scheme in ("", "file"):
        base = os.path.join(open_filesystem(url)[1], "")
    else:
        base = f"{url.rstrip('/')}/" if url.partition("://")[2].strip("/") else url  # memory:// is a folder itself
    return lambda name: base + name


@functools.lru_cache(maxsize=16)
def _arrow_filesystem(url: str) -> tuple[fs.FileSystem, str]:
    """Cached: opening one may look up a bucket's region, and there is one call per image."""
    try:
        return fs.FileSystem.from_uri(url)
    except (ArrowInvalid, OSError) as error:
        raise DataError(f"{url}: cannot be opened: {' '.join(str(error).split())}") from error


def _fsspec_filesystem(url: str) -> tuple[fs.FileSystem, str]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise DataError(f"{url}: cannot be opened: {' '.join(str(error).split())}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path

"""Finding and reading images on any filesystem: local paths, s3://, gs://, and whatever fsspec knows."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from posixpath import splitext
from urllib.parse import quote, unquote, urlsplit

from pyarrow import fs

from gmd_ray.errors import ConfigError, DataError, GmdError, StorageError
from gmd_ray.images import lmdb_store
from gmd_ray.images.files.formats import DECODED as DECODED
from gmd_ray.images.files.formats import EXTENSIONS as EXTENSIONS
from gmd_ray.images.files.formats import NOT_DECODED as NOT_DECODED
from gmd_ray.images.files.formats import refusal_by_name
from gmd_ray.images.layouts import PublishedSet, parse_set
from gmd_ray.images.walking import FoundFile, repeated, walk
from gmd_ray.text import one_line, printable

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Listing:
    """The images of a folder, and what else lies there."""

    images: Sequence[ImageFile]
    """Sorted by id."""
    left_out: Mapping[str, int]
    """Reason or ending -> how many files, links and whole folders are not among the images."""
    aliases: Mapping[str, str]
    """Id of a link that is not among the images, since they hold what it leads to -> that file or folder, relative."""

    def told(self) -> str:
        """What was left out, on one line; empty where nothing was."""
        common = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        reasons = [item for item in common if not item[0].startswith(".")]
        endings = [item for item in common if item[0].startswith(".")]
        shown = ", ".join(f"{reason}: {n}" for reason, n in (*reasons, *endings[:5]))
        return printable(shown + (", ..." if len(endings) > 5 else ""))

    def repeats(self) -> list[ImageFile]:
        """The images once more that links lead to, under the links' names: a partner may go by such a name."""
        by_id = {image.id: image for image in self.images}
        found = []
        for link, listed in repeated(self.aliases, by_id).items():
            image = by_id[listed]
            uri = image.uri.removesuffix(listed) + link  # links are of the local disk, whose URIs are plain paths
            found.append(ImageFile(link, uri, image.size, image.modified))
        return found


def open_filesystem(url: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or URL, and the path on it.

    Args:
        url: a local path (`~` allowed), `file://`, `s3://` or `gs://` as pyarrow reads them (percent-encoded, options
            such as `?endpoint_override=...` at the end), or any other scheme of fsspec, taken literally.
            Keep credentials in the environment: URLs are written to the pair store and to logs.

    Raises:
        ConfigError: for an empty path.
        DataError: for a scheme that is unknown, whose driver is not installed, or whose server cannot be reached.
    """
    if not url.strip() or url in ("file://", "local://"):
        raise ConfigError("an empty path: give a folder, or `.` for the one you are in")
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if not scheme:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(url))
    if scheme == "file":
        return fs.LocalFileSystem(), os.path.abspath(unquote(url[len("file://") :]))
    if scheme == "local":  # fsspec's other name of it; its own driver would walk in circles of links
        return fs.LocalFileSystem(), os.path.abspath(url[len("local://") :])
    if scheme in _ARROW_SCHEMES:
        parts = urlsplit(url)
        query = f"?{parts.query}" if parts.query else ""
        filesystem, bucket = _arrow_filesystem(f"{scheme}://{parts.netloc}{query}")
        return filesystem, f"{bucket}/{unquote(parts.path).strip('/')}".rstrip("/")
    return _fsspec_filesystem(url)


def check_limit(limit: int | None) -> None:
    """Refuse a number of images below 1 with a ConfigError."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: give at least 1, or leave it out for all images")


def list_images(url: str, limit: int | None = None) -> list[ImageFile]:
    """The images of a folder and its subfolders, sorted by id; see `list_folder`."""
    return list(list_folder(url, limit).images)


def list_folder(url: str, limit: int | None = None) -> Listing:
    """The images of a folder and its subfolders, and what was left out, which the log tells too.

    Files are known by extension (`EXTENSIONS`, in any case). Anything with a component that starts with a dot is
    hidden and left out, as are folders of thumbnails and deleted files (`walking.NOT_PHOTOS`). Links are followed, and
    each real file is listed once.

    Args:
        url: see `open_filesystem`; or a published set, as `gopro/train/blur@/datasets` (see `layouts`); or a local
            `NAME.lmdb` folder of BasicSR.
        limit: keep the first n.

    Raises:
        DataError: where the folder is missing, unreadable, or holds no image; where a published set is not whole;
            where the storage gives names that are not below the folder.
        ConfigError: for an empty path, a limit below 1, or a published set that is not known.
    """
    check_limit(limit)
    published = parse_set(url)
    if published is not None:
        return Listing(_list_published(*published)[:limit], {}, {})
    if lmdb_store.is_store(url):
        stored = lmdb_store.list_store(url)
        changed = _microseconds(os.stat(os.path.join(os.path.expanduser(url), "data.mdb")).st_mtime_ns)
        return Listing([ImageFile(key, stored[key], None, changed) for key in sorted(stored)][:limit], {}, {})
    filesystem, root = open_filesystem(url)
    found = walk(filesystem, root, url, _why_not)
    names, left_out = list(found.files), found.left_out
    doubles = _beside_readable(names)
    if doubles:
        left_out["beside a file of the same name that can be read"] += len(doubles)
        names = [name for name in names if name not in doubles]
    join = _joiner(url)
    images = [_image_file(name, join(name), found.files[name]) for name in sorted(names)[:limit]]
    listing = Listing(images, left_out, found.aliases)
    if left_out:
        logger.info("%s: %d files, links and folders left out (%s)", url, left_out.total(), listing.told())
    if not images:
        raise DataError(f"{url}: no images ({', '.join(sorted(DECODED))}) among {left_out.total()} files")
    return listing


def _why_not(name: str) -> str:
    """Of a file in a folder of photos: why it is left out, or nothing."""
    if name.rpartition("/")[2].startswith("."):
        return "hidden"
    extension = splitext(name)[1]
    return "" if extension.lower() in EXTENSIONS else extension or "no extension"


def _beside_readable(names: Sequence[str]) -> set[str]:
    """Those that are not decoded and lie beside a file of the same stem that is."""
    split = [(name, *splitext(name)) for name in names]
    if all(extension.lower() in DECODED for _, _, extension in split):
        return set()
    readable = {stem for _, stem, extension in split if extension.lower() in DECODED}
    return {name for name, stem, extension in split if extension.lower() in NOT_DECODED and stem in readable}


def _list_published(name: str, published: PublishedSet, root: str) -> list[ImageFile]:
    filesystem, base = open_filesystem(root)
    if filesystem.get_file_info(base).type != fs.FileType.Directory:
        raise DataError(f"{name}@{root}: no such folder as {root}; give the folder of the data sets, data.root=...")
    # What comes before the first star is one folder: REDS has three other sides beside it, of 24,000 files each.
    fixed = str(PurePosixPath(published.folder, *published.files.partition("*")[0].split("/")[:-1]))
    if filesystem.get_file_info(f"{base}/{fixed}").type != fs.FileType.Directory:
        raise published.missing(name, root, f"no folder {root}/{fixed}")

    def relative(below: str) -> str:
        return f"{fixed}/{below}"[len(published.folder) + 1 :]

    def why_not(below: str) -> str:
        return "of another side" if published.image_id(relative(below)) is None else ""

    there = walk(filesystem, f"{base}/{fixed}", f"{root}/{fixed}", why_not)
    # A side has its count of names: two of them may be one file, through a link.
    files = there.files | {
        link: there.files[name] for link, name in repeated(there.aliases, there.files).items() if not why_not(link)
    }
    found, infos = {}, {}
    for below, info in files.items():
        path = relative(below)
        key = published.image_id(path)
        assert key is not None  # by why_not
        found[key], infos[path] = path, info
    lines = read_file(_joiner(root)(published.listed.path)).decode() if published.listed else None
    chosen = published.select(name, root, found, lines)
    join = _joiner(root)
    return [_image_file(key, join(f"{published.folder}/{chosen[key]}"), infos[chosen[key]]) for key in sorted(chosen)]


def _image_file(key: str, uri: str, info: FoundFile) -> ImageFile:
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
        DataError: where it does not exist or may not be read, or where its name is of a format that is not decoded
            (`NOT_DECODED`): it is not read then, whatever it holds.
        StorageError: where the storage fails otherwise: a network may recover.
    """
    stored = lmdb_store.split_uri(uri)
    filesystem, path = (None, stored[1]) if stored is not None else open_filesystem(uri)
    refusal = refusal_by_name(path)
    if refusal is not None:
        raise DataError(f"{uri}: {refusal}")
    if stored is not None:
        return lmdb_store.read_image(*stored)
    assert filesystem is not None
    try:
        with filesystem.open_input_stream(path, compression=None) as stream:
            return stream.read()
    except FileNotFoundError as error:
        raise DataError(f"{uri}: no such file") from error
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise DataError(f"{uri}: cannot be read: {_one_line(error)}") from error
    except (GmdError, MemoryError):
        raise
    except Exception as error:
        if isinstance(filesystem, fs.LocalFileSystem) and not isinstance(error, OSError):
            raise
        raise StorageError(f"{uri}: cannot be read: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    text = one_line(error)
    return text if text and isinstance(error, OSError) else f"{type(error).__name__}: {text}".removesuffix(": ")


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
    except OSError as error:
        raise StorageError(f"{url}: cannot be opened: {_one_line(error)}") from error
    except ValueError as error:  # ArrowInvalid among them
        raise DataError(f"{url}: cannot be opened: {one_line(error)}") from error


def _fsspec_filesystem(url: str) -> tuple[fs.FileSystem, str]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError, TypeError, FileNotFoundError) as error:  # the URL, or what it needs here
        raise DataError(f"{url}: cannot be opened: {one_line(error)}") from error
    except Exception as error:  # drivers raise what their own libraries raise (ftplib, paramiko, botocore, ...)
        raise StorageError(f"{url}: cannot be opened: {_one_line(error)}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path

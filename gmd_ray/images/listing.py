"""Finding and reading images on any filesystem: local paths, s3://, gs://, and whatever fsspec knows."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from posixpath import splitext
from urllib.parse import quote

from pyarrow import fs

from gmd_ray.errors import ConfigError, DataError, GmdError, StorageError
from gmd_ray.images import lmdb_store
from gmd_ray.images.files.formats import DECODED as DECODED
from gmd_ray.images.files.formats import EXTENSIONS as EXTENSIONS
from gmd_ray.images.files.formats import NOT_DECODED as NOT_DECODED
from gmd_ray.images.files.formats import refusal_by_name
from gmd_ray.images.layouts import PublishedSet, parse_set
from gmd_ray.images.walking import FoundFile, repeated, walk
from gmd_ray.storage import ARROW_SCHEMES, open_filesystem, why_storage_failed
from gmd_ray.text import printable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image of a folder."""

    id: str
    """POSIX path relative to the folder: unique, and independent of the folder's own location."""
    uri: str
    """Absolute local path or URL; the argument of `read_file`."""
    size: int | None = None
    """Size in bytes; None if the listing does not state it."""
    modified: datetime | None = None
    """Time of the last change (UTC, whole microseconds); None if the storage has none.

    An image in an LMDB has the time of its data.mdb."""


@dataclass(frozen=True)
class Listing:
    """The images of a folder, and an account of everything else in it."""

    images: Sequence[ImageFile]
    """All images, sorted by id."""
    left_out: Mapping[str, int]
    """Reason or file extension -> number of files, links and whole folders that are not among the images."""
    aliases: Mapping[str, str]
    """Relative path of a link that is left out because its target is listed -> relative path of the target."""

    def summary(self) -> str:
        """Summarise what was left out on one line; empty if nothing was."""
        common = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        reasons = [item for item in common if not item[0].startswith(".")]
        endings = [item for item in common if item[0].startswith(".")]
        shown = ", ".join(f"{reason}: {n}" for reason, n in (*reasons, *endings[:5]))
        return printable(shown + (", ..." if len(endings) > 5 else ""))

    def repeats(self) -> list[ImageFile]:
        """List the targets of left-out links again, under the names of the links.

        The other half of a pair may be named after the link.
        """
        by_id = {image.id: image for image in self.images}
        repeats = []
        for link, listed in repeated(self.aliases, by_id).items():
            image = by_id[listed]
            uri = image.uri.removesuffix(listed) + link  # only the local disk has links, and its URIs are plain paths
            repeats.append(ImageFile(link, uri, image.size, image.modified))
        return repeats


def check_limit(limit: int | None) -> None:
    """Raise a ConfigError for a limit below 1."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: give at least 1, or leave it out for all images")


def list_images(url: str, limit: int | None = None) -> list[ImageFile]:
    """List the images of a folder and its subfolders, sorted by id; see `list_folder`."""
    return list(list_folder(url, limit).images)


def list_folder(url: str, limit: int | None = None) -> Listing:
    """List the images of a folder and its subfolders. What is left out is counted and logged.

    Images are recognised by file extension (`EXTENSIONS`, in any case). Paths with a component that starts with a dot
    are hidden and left out, as are folders of thumbnails and deleted files (`walking.NOT_PHOTOS`). Links are followed,
    and each real file is listed once.

    Args:
        url: a folder, see `open_filesystem`; or a published set, as `gopro/train/blur@/datasets` (see `layouts`); or a
            local `NAME.lmdb` folder of BasicSR.
        limit: keep only the first `limit` images.

    Raises:
        DataError: the folder is missing, unreadable or without images; a published set is incomplete; or the storage
            lists names that are not below the folder.
        ConfigError: the path is empty, the limit is below 1, or the published set is unknown.
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
    walked = walk(filesystem, root, url, _why_not)
    names, left_out = list(walked.files), walked.left_out
    doubles = _beside_readable(names)
    if doubles:
        left_out["beside a file of the same name that can be read"] += len(doubles)
        names = [name for name in names if name not in doubles]
    join = _joiner(url)
    images = [_image_file(name, join(name), walked.files[name]) for name in sorted(names)[:limit]]
    listing = Listing(images, left_out, walked.aliases)
    if left_out:
        logger.info("%s: %d files, links and folders left out (%s)", url, left_out.total(), listing.summary())
    if not images:
        raise DataError(f"{url}: no images ({', '.join(sorted(DECODED))}) among {left_out.total()} files")
    return listing


def _why_not(name: str) -> str:
    """Return the reason to leave a file out of a folder of photos; empty for an image."""
    if name.rpartition("/")[2].startswith("."):
        return "hidden"
    extension = splitext(name)[1]
    return "" if extension.lower() in EXTENSIONS else extension or "no extension"


def _beside_readable(names: Sequence[str]) -> set[str]:
    """Return the files that cannot be decoded and lie beside a decodable file of the same stem.

    Cameras that write a raw file and a JPEG of each photo make such pairs.
    """
    split = [(name, *splitext(name)) for name in names]
    if all(extension.lower() in DECODED for _, _, extension in split):
        return set()
    readable = {stem for _, stem, extension in split if extension.lower() in DECODED}
    return {name for name, stem, extension in split if extension.lower() in NOT_DECODED and stem in readable}


def _list_published(name: str, published: PublishedSet, root: str) -> list[ImageFile]:
    filesystem, base = open_filesystem(root)
    if filesystem.get_file_info(base).type != fs.FileType.Directory:
        raise DataError(f"{name}@{root}: no such folder as {root}; give the folder of the data sets, data.root=...")
    # Only the folder before the first star is walked: REDS has three other sides beside it, of 24,000 files each.
    fixed = str(PurePosixPath(published.folder, *published.files.partition("*")[0].split("/")[:-1]))
    if filesystem.get_file_info(f"{base}/{fixed}").type != fs.FileType.Directory:
        raise published.missing(name, root, f"no folder {root}/{fixed}")

    def relative(below: str) -> str:
        return f"{fixed}/{below}"[len(published.folder) + 1 :]

    def why_not(below: str) -> str:
        return "of another side" if published.image_id(relative(below)) is None else ""

    there = walk(filesystem, f"{base}/{fixed}", f"{root}/{fixed}", why_not)
    # The published count is of names, two of which may be one file through a link, so links count here.
    files = there.files | {
        link: there.files[name] for link, name in repeated(there.aliases, there.files).items() if not why_not(link)
    }
    by_id, infos = {}, {}
    for below, info in files.items():
        path = relative(below)
        key = published.image_id(path)
        assert key is not None  # by why_not
        by_id[key], infos[path] = path, info
    lines = read_file(_joiner(root)(published.listed.path)).decode() if published.listed else None
    chosen = published.select(name, root, by_id, lines)
    join = _joiner(root)
    return [_image_file(key, join(f"{published.folder}/{chosen[key]}"), infos[chosen[key]]) for key in sorted(chosen)]


def _image_file(key: str, uri: str, info: FoundFile) -> ImageFile:
    return ImageFile(key, uri, info.size, _microseconds(info.mtime_ns))


def _microseconds(ns: int | None) -> datetime | None:
    """Convert nanoseconds to a time of whole microseconds, which Parquet and datetime both hold exactly."""
    if not ns or ns < 0:  # fsspec filesystems without times report the epoch
        return None
    seconds, rest = divmod(ns // 1000, 10**6)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def read_file(uri: str) -> bytes:
    """Read a file.

    Raises:
        DataError: it does not exist, may not be read, or its name has an extension that is not decoded
            (`NOT_DECODED`); such a file is refused unread.
        StorageError: the storage failed in another way; a network may recover.
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
        raise DataError(f"{uri}: cannot be read: {why_storage_failed(error)}") from error
    except (GmdError, MemoryError):
        raise
    except Exception as error:
        if isinstance(filesystem, fs.LocalFileSystem) and not isinstance(error, OSError):
            raise
        raise StorageError(f"{uri}: cannot be read: {why_storage_failed(error)}") from error


def _joiner(url: str) -> Callable[[str], str]:
    """Return a function that makes a URI of the name of a file below this folder."""
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme in ARROW_SCHEMES:
        folder, mark, query = url.partition("?")
        return lambda name: f"{folder.rstrip('/')}/{quote(name)}{mark}{query}"
    if scheme in ("", "file"):
        base = os.path.join(open_filesystem(url)[1], "")
    else:
        base = f"{url.rstrip('/')}/" if url.partition("://")[2].strip("/") else url  # `memory://` alone is a folder
    return lambda name: base + name

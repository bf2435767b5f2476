"""Walking a folder: each real directory is visited once, however many links lead to it, and thumbnails are skipped."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from pyarrow import fs

from gmd_ray.errors import DataError
from gmd_ray.images.safe_paths import safe_relative
from gmd_ray.text import one_line

NOT_PHOTOS = frozenset(
    {"@eadir", "#recycle", "@recycle", "#snapshot", "@recently-snapshot", "~snapshot", "@tmp", "@sharebin", "@__thumb"}
    | {"$recycle.bin", "recycler", "recycled", "system volume information", "found.000"}
    | {"__macosx", "network trash folder", "temporary items", "lost+found"}
)
"""Names (in lower case) of folders in which NAS systems, Windows and macOS keep thumbnails, copies and deleted files.
"""

LOOP = "link that leads back to a folder it lies in"
REPEATED_FOLDER = "link to a folder that is listed already"
REPEATED_FILE = "link to a file that is listed already"
BROKEN = "link that leads nowhere"
NO_FILE = "neither file nor folder"

WhyNot = Callable[[str], str]
"""Maps the relative path of a file to the reason for leaving it out; empty if it belongs."""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """The facts that a listing gives about one file."""

    size: int | None
    """Size in bytes; None if not listed."""
    mtime_ns: int | None
    """Time of the last change in nanoseconds since 1970; None if not listed."""
    inode: tuple[int, int] | None = None
    """A local file's (device, inode); None on other storage."""


@dataclass
class Walk:
    """The files below a folder, and an account of what was left out."""

    files: dict[str, FoundFile] = field(default_factory=dict)
    """Path relative to the folder -> file."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> number of files, links and whole folders that are not in `files`."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Relative path of a link left out as a repeat -> relative path of its listed target. Loops are not included."""


def repeated(aliases: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """Map the name that each file has through a left-out link to the name under which it is listed."""
    listed = {}
    for link, target in sorted(aliases.items()):
        inside = [target] if target in names else [name for name in names if name.startswith(f"{target}/")]
        listed.update({link + name[len(target) :]: name for name in inside})
    return listed


def unwanted_folder(name: str) -> str:
    """Return the reason not to walk a folder of this name; empty if it is walked."""
    if name.startswith(".") and name not in (".", ".."):  # `.` and `..` are refused by safe_relative
        return "hidden"
    return name if name.lower() in NOT_PHOTOS else ""


def walk(filesystem: fs.FileSystem, root: str, url: str, why_not: WhyNot) -> Walk:
    """List the files below `root`.

    A folder whose name begins with a dot or is in NOT_PHOTOS counts as one omission and is not walked.

    On the local disk, links are followed. Each real directory is listed once: under its path without links if it has
    one, otherwise under the link that sorts first. The same holds for files behind links. Hard links count as separate
    files.

    Args:
        filesystem: from `open_filesystem`.
        root: the path from `open_filesystem`.
        url: the user's own path or URL, for errors.
        why_not: called for every file.

    Raises:
        DataError: the folder is absent, a file, or unreadable (also below it); a name is not UTF-8 or, on storage other
            than the local disk, leads out of the folder.
    """
    try:
        kind = filesystem.get_file_info(root).type
        if kind == fs.FileType.NotFound:
            raise DataError(f"{url}: no such folder")
        if kind == fs.FileType.File:
            raise DataError(f"{url}: is a file; give the folder that holds the images")
        if isinstance(filesystem, fs.LocalFileSystem):
            return _LocalWalk(root, url, why_not).walked
        return _walk_remote(filesystem, root, url, why_not)
    except DataError:
        raise
    except OSError as error:
        where = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        raise DataError(f"{url}: cannot be listed: {' '.join(where.split())}") from error
    except Exception as error:  # drivers raise what their own libraries raise (botocore, aiohttp, ...)
        if isinstance(filesystem, fs.LocalFileSystem):
            raise
        text = one_line(error)
        raise DataError(f"{url}: cannot be listed: {type(error).__name__}: {text}") from error


def _walk_remote(filesystem: fs.FileSystem, root: str, url: str, why_not: WhyNot) -> Walk:
    walked, unwanted, base = Walk(), set[tuple[str, ...]](), root.strip("/")
    for info in filesystem.get_file_info(fs.FileSelector(root, recursive=True)):
        if info.type != fs.FileType.File:
            continue
        path = info.path.lstrip("/")
        if base and not path.startswith(f"{base}/"):
            raise DataError(f"{url}: its server lists '{info.path}', which is not below it")
        name = path[len(base) :].lstrip("/") if base else path
        folders = name.split("/")[:-1]
        depth = next((i for i, folder in enumerate(folders) if unwanted_folder(folder)), None)
        if depth is not None:
            unwanted.add(tuple(folders[: depth + 1]))
        elif reason := why_not(name):
            walked.left_out[reason] += 1
        else:
            walked.files[safe_relative(name)] = FoundFile(info.size, info.mtime_ns)
    walked.left_out.update(unwanted_folder(folders[-1]) for folders in unwanted)
    return walked


_Inode = tuple[int, int]


class _LocalWalk:
    """Walks real directories first, then the links in them, level by level: listing order has no effect."""

    def __init__(self, root: str, url: str, why_not: WhyNot) -> None:
        self.walked = Walk()
        self._root, self._url, self._why_not = root, url, why_not
        self._folders: dict[_Inode, str] = {}
        self._files: dict[_Inode, str] | None = None  # built when the first link to a file needs it
        self._links: list[tuple[str, frozenset[_Inode]]] = []
        self._tree("", _above(root))
        while self._links:
            links, self._links = sorted(self._links), []
            for relative, above in links:
                self._follow(relative, above)

    def _tree(self, relative: str, above: frozenset[_Inode]) -> None:
        """Walk a real directory. `above` holds the directory and all its ancestors."""
        self._folders[_inode(os.stat(self._path(relative)))] = relative
        stack = [(relative, above)]
        while stack:
            folder, above = stack.pop()
            try:
                entries = os.scandir(self._path(folder))
            except FileNotFoundError:  # deleted since it was listed
                continue
            with entries:
                for entry in entries:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_symlink():
                        self._links.append((name, above))
                    elif not entry.is_dir(follow_symlinks=False):
                        self._file(name, entry)
                    elif reason := unwanted_folder(entry.name):
                        self.walked.left_out[reason] += 1
                    else:
                        inode = _inode(entry.stat(follow_symlinks=False))
                        if self._enter(name, inode, above):
                            stack.append((name, above | {inode}))

    def _file(self, name: str, entry: os.DirEntry[str]) -> None:
        if not entry.is_file(follow_symlinks=False):
            self.walked.left_out[NO_FILE] += 1
        elif reason := self._why_not(name):
            self.walked.left_out[reason] += 1
        else:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                return
            self._add(name, status)

    def _enter(self, name: str, inode: _Inode, above: frozenset[_Inode]) -> bool:
        """Tell whether to walk a directory under this name, and record why not."""
        if inode in above:
            self.walked.left_out[LOOP] += 1
        elif inode in self._folders:
            self.walked.left_out[REPEATED_FOLDER] += 1
            self.walked.aliases[name] = self._folders[inode]
        else:
            self._folders[inode] = name
            return True
        return False

    def _follow(self, name: str, above: frozenset[_Inode]) -> None:
        path = self._path(name)
        last = name.rpartition("/")[2]
        try:
            status = os.stat(path)
        except PermissionError:
            raise
        except OSError:  # the target is absent, or links form a circle
            self.walked.left_out[BROKEN] += 1
            return
        if stat.S_ISDIR(status.st_mode):
            if reason := unwanted_folder(last):
                self.walked.left_out[reason] += 1
            elif self._enter(name, _inode(status), above):
                self._tree(name, above | _above(path))
        elif not stat.S_ISREG(status.st_mode):
            self.walked.left_out[NO_FILE] += 1
        elif reason := self._why_not(name):
            self.walked.left_out[reason] += 1
        else:
            if self._files is None:
                self._files = {file.inode: known for known, file in self.walked.files.items() if file.inode}
            known = self._files.get(_inode(status))
            if known is None:
                self._add(name, status)
            else:
                self.walked.left_out[REPEATED_FILE] += 1
                self.walked.aliases[name] = known

    def _add(self, name: str, status: os.stat_result) -> None:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            wrong = os.fsencode(name)
            raise DataError(f"{self._url}: a file name is not valid UTF-8 ({wrong!r}); rename it") from error
        inode = _inode(status)
        self.walked.files[name] = FoundFile(status.st_size, status.st_mtime_ns, inode)
        if self._files is not None:
            self._files.setdefault(inode, name)

    def _path(self, relative: str) -> str:
        return os.path.join(self._root, relative)


def _inode(status: os.stat_result) -> _Inode:
    return status.st_dev, status.st_ino


def _above(path: str) -> frozenset[_Inode]:
    """Return the inodes of a directory and all its real ancestors."""
    real = os.path.realpath(path)
    inodes = {_inode(os.stat(real))}
    while real != os.path.dirname(real):
        real = os.path.dirname(real)
        inodes.add(_inode(os.stat(real)))
    return frozenset(inodes)

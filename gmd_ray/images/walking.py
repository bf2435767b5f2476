"""The files below a folder: each real directory once, whatever links lead to it, and nobody's thumbnails."""

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
"""Folders (in lower case) of NAS systems, Windows and macOS that hold thumbnails, copies and deleted files."""

LOOP = "link that leads back to a folder it lies in"
REPEATED_FOLDER = "link to a folder that is listed already"
REPEATED_FILE = "link to a file that is listed already"
BROKEN = "link that leads nowhere"
NO_FILE = "neither file nor folder"

WhyNot = Callable[[str], str]
"""Why the file of this relative path is left out; empty where it is not."""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """What a listing tells of one file."""

    size: int | None
    mtime_ns: int | None
    inode: tuple[int, int] | None = None
    """(device, inode) of a local file."""


@dataclass
class Walk:
    """What lies below a folder."""

    files: dict[str, FoundFile] = field(default_factory=dict)
    """By their paths relative to the folder."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> files, links and whole folders that are not in `files`."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Relative path of a link that was left out as a repeat -> that of the file or folder it leads to, which is listed.
    Loops are not among them."""


def repeated(aliases: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """Name below a link that was left out as a repeat -> the name that is listed, for all files that links lead to."""
    found = {}
    for link, target in sorted(aliases.items()):
        inside = [target] if target in names else [name for name in names if name.startswith(f"{target}/")]
        found.update({link + name[len(target) :]: name for name in inside})
    return found


def unwanted_folder(name: str) -> str:
    """Why a folder of this name is not walked; empty for one that is."""
    if name.startswith(".") and name not in (".", ".."):  # these are no names, and are refused elsewhere
        return "hidden"
    return name if name.lower() in NOT_PHOTOS else ""


def walk(filesystem: fs.FileSystem, root: str, url: str, why_not: WhyNot) -> Walk:
    """The files below `root`.

    A folder whose name begins with a dot, or is among NOT_PHOTOS, counts once and is not walked.

    On the local disk links are followed, and each real directory is listed once: under its path without links where it
    has one, else under the link that sorts first. The same holds for files that links lead to; hard links are files of
    their own.

    Args:
        filesystem: from `open_filesystem`, as is `root`.
        url: what the user gave, for errors.
        why_not: asked for every file.

    Raises:
        DataError: where the folder is absent, a file, or cannot be read, below it too; where a name is not UTF-8, or
            (on other storage than the local disk) leads out of the folder.
    """
    try:
        kind = filesystem.get_file_info(root).type
        if kind == fs.FileType.NotFound:
            raise DataError(f"{url}: no such folder")
        if kind == fs.FileType.File:
            raise DataError(f"{url}: is a file; give the folder that holds the images")
        if isinstance(filesystem, fs.LocalFileSystem):
            return _LocalWalk(root, url, why_not).found
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
    found, unwanted, base = Walk(), set[tuple[str, ...]](), root.strip("/")
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
            found.left_out[reason] += 1
        else:
            found.files[safe_relative(name)] = FoundFile(info.size, info.mtime_ns)
    found.left_out.update(unwanted_folder(folders[-1]) for folders in unwanted)
    return found


_Inode = tuple[int, int]


class _LocalWalk:
    """Real directories first, then the links that they hold, level by level: so no result hangs on listing order."""

    def __init__(self, root: str, url: str, why_not: WhyNot) -> None:
        self.found = Walk()
        self._root, self._url, self._why_not = root, url, why_not
        self._folders: dict[_Inode, str] = {}
        self._files: dict[_Inode, str] | None = None  # made when the first link to a file asks for it
        self._links: list[tuple[str, frozenset[_Inode]]] = []
        self._tree("", _above(root))
        while self._links:
            links, self._links = sorted(self._links), []
            for relative, above in links:
                self._follow(relative, above)

    def _tree(self, relative: str, above: frozenset[_Inode]) -> None:
        """Walk a real directory; `above` are those it lies in, itself included."""
        self._folders[_inode(os.stat(self._path(relative)))] = relative
        stack = [(relative, above)]
        while stack:
            folder, above = stack.pop()
            try:
                entries = os.scandir(self._path(folder))
            except FileNotFoundError:  # gone since it was seen
                continue
            with entries:
                for entry in entries:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_symlink():
                        self._links.append((name, above))
                    elif not entry.is_dir(follow_symlinks=False):
                        self._file(name, entry)
                    elif reason := unwanted_folder(entry.name):
                        self.found.left_out[reason] += 1
                    else:
                        inode = _inode(entry.stat(follow_symlinks=False))
                        if self._enter(name, inode, above):
                            stack.append((name, above | {inode}))

    def _file(self, name: str, entry: os.DirEntry[str]) -> None:
        if not entry.is_file(follow_symlinks=False):
            self.found.left_out[NO_FILE] += 1
        elif reason := self._why_not(name):
            self.found.left_out[reason] += 1
        else:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                return
            self._add(name, status)

    def _enter(self, name: str, inode: _Inode, above: frozenset[_Inode]) -> bool:
        """Whether a directory is to be walked under this name."""
        if inode in above:
            self.found.left_out[LOOP] += 1
        elif inode in self._folders:
            self.found.left_out[REPEATED_FOLDER] += 1
            self.found.aliases[name] = self._folders[inode]
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
        except OSError:  # nothing there, or links that lead to each other
            self.found.left_out[BROKEN] += 1
            return
        if stat.S_ISDIR(status.st_mode):
            if reason := unwanted_folder(last):
                self.found.left_out[reason] += 1
            elif self._enter(name, _inode(status), above):
                self._tree(name, above | _above(path))
        elif not stat.S_ISREG(status.st_mode):
            self.found.left_out[NO_FILE] += 1
        elif reason := self._why_not(name):
            self.found.left_out[reason] += 1
        else:
            if self._files is None:
                self._files = {file.inode: known for known, file in self.found.files.items() if file.inode}
            known = self._files.get(_inode(status))
            if known is None:
                self._add(name, status)
            else:
                self.found.left_out[REPEATED_FILE] += 1
                self.found.aliases[name] = known

    def _add(self, name: str, status: os.stat_result) -> None:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            wrong = os.fsencode(name)
            raise DataError(f"{self._url}: a file name is not valid UTF-8 ({wrong!r}); rename it") from error
        inode = _inode(status)
        self.found.files[name] = FoundFile(status.st_size, status.st_mtime_ns, inode)
        if self._files is not None:
            self._files.setdefault(inode, name)

    def _path(self, relative: str) -> str:
        return os.path.join(self._root, relative)


def _inode(status: os.stat_result) -> _Inode:
    return status.st_dev, status.st_ino


def _above(path: str) -> frozenset[_Inode]:
    """A directory and all that it really lies in."""
    real = os.path.realpath(path)
    found = {_inode(os.stat(real))}
    while real != os.path.dirname(real):
        real = os.path.dirname(real)
        found.add(_inode(os.stat(real)))
    return frozenset(found)

"""The folder that results of `restore` go to: what is finished in it, and the record that says so."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from pyarrow import fs

from gmd_ray.errors import ConfigError, GmdError
from gmd_ray.hashing import content_digest
from gmd_ray.images.finished import NAME, Finished, modified, read_record, write_record
from gmd_ray.images.listing import ImageFile, open_filesystem, read_file
from gmd_ray.images.sizes import image_sizes
from gmd_ray.storage import get, put, remove
from gmd_ray.text import one_line, printable

log = logging.getLogger("gmd_ray")

_SAVE_EVERY_S = 1.0
_SAVE_SHARE = 20
"""The record is written at most so often, and takes at most this part of the time: it has a line for each photo."""

Size = tuple[int, int]


class Results:
    """A folder of results, local or on any filesystem.

    Raises:
        ConfigError: a folder that cannot be made or written.
    """

    def __init__(self, out: str) -> None:
        self._out = out
        self._filesystem, self._base = open_filesystem(out)
        probe = f"{self._base}/.gmd-restore.probe"
        try:
            put(self._filesystem, probe, b"")
            remove(self._filesystem, probe)
            self._record = read_record(get(self._filesystem, f"{self._base}/{NAME}"))
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise ConfigError(f"{out}: cannot be written ({reason}); give another folder for the results") from error
        self._saved_at, self._pause_s, self._unsaved = time.monotonic(), _SAVE_EVERY_S, False

    def sizes(self, photos: Mapping[str, ImageFile], max_pixels: int) -> dict[str, Size | None]:
        """(height, width) of each photo as stored, None where there is none; from the record where it is known."""
        made = {entry.id: entry for entry in self._record.values()}
        sizes: dict[str, Size | None] = {}
        for key, photo in photos.items():
            entry = made.get(key)
            listed = (photo.size, modified(photo))
            if entry is not None and None not in listed and listed == (entry.photo_size, entry.photo_modified):
                sizes[key] = (entry.height, entry.width)
        rest = [photo for key, photo in photos.items() if key not in sizes]
        return sizes | dict(zip((photo.id for photo in rest), image_sizes(rest, max_pixels), strict=True))

    def unfinished(
        self, photos: Mapping[str, ImageFile], names: Mapping[str, str], made_with: str, overwrite: bool
    ) -> list[ImageFile]:
        """The photos whose results are still to be made; the log says what is left, and what will be replaced."""
        there = self._there(list(names.values()))
        todo, foreign, older = [], [], 0
        for key, photo in photos.items():
            entry, size = self._record.get(names[key]), there.get(names[key])
            ours = entry is not None and entry.size == size
            if ours and entry is not None and not overwrite:
                if entry.made_with == made_with and entry.of_unchanged(photo, lambda p=photo: _digest(p)):  # type: ignore[misc]
                    continue
                older += 1
            elif size is not None and not ours:
                foreign.append(names[key])
            todo.append(photo)
        finished = len(photos) - len(todo)
        if finished:
            log.info(
                "%s: %d of %d results are finished and stay; --overwrite makes them anew",
                self._out,
                finished,
                len(photos),
            )
        if older:
            log.info(
                "%s: %d results are of other photos, another student or other settings; made anew", self._out, older
            )
        if foreign:
            log.warning(
                "%s: %d files lie where results go and are in no record of a run, or changed since; replaced: %s",
                self._out,
                len(foreign),
                ", ".join(printable(name) for name in foreign[:5]) + (", ..." if len(foreign) > 5 else ""),
            )
        return todo

    def add(self, photo: ImageFile, name: str, made_with: str, digest: str, size: int, pixels: Size | None) -> None:
        """Note a result that was written, and save the record from time to time."""
        height, width = pixels or (0, 0)
        self._record[name] = Finished(
            name, size, made_with, photo.id, digest, photo.size, modified(photo), height, width
        )
        self._unsaved = True
        if time.monotonic() - self._saved_at >= self._pause_s:
            self.save()

    def save(self) -> None:
        """Write the record, if there is news."""
        if not self._unsaved:
            return
        start = time.monotonic()
        put(self._filesystem, f"{self._base}/{NAME}", write_record(self._record.values()))
        self._saved_at, self._unsaved = time.monotonic(), False
        self._pause_s = max(_SAVE_EVERY_S, _SAVE_SHARE * (self._saved_at - start))

    def _there(self, names: list[str]) -> dict[str, int]:
        """Bytes of the files of these names that are in the folder."""
        if isinstance(self._filesystem, fs.LocalFileSystem):
            infos = self._filesystem.get_file_info([f"{self._base}/{name}" for name in names])
        else:  # a question for each would be a round trip for each
            infos = self._filesystem.get_file_info(fs.FileSelector(self._base, recursive=True, allow_not_found=True))
        start = len(self._base) + 1
        return {info.path[start:]: info.size for info in infos if info.type == fs.FileType.File}


def _digest(photo: ImageFile) -> str:
    try:
        return content_digest(read_file(photo.uri))
    except (OSError, GmdError):  # its row will say why it cannot be read
        return ""

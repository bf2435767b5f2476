"""The output folder of `restore`: its finished results, and the record that identifies them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from pyarrow import fs

from gmd_ray.errors import ConfigError, GmdError
from gmd_ray.hashing import content_digest
from gmd_ray.images.finished import RECORD_FILE, Finished, modified, read_record, write_record
from gmd_ray.images.listing import ImageFile, read_file
from gmd_ray.images.sizes import image_sizes
from gmd_ray.storage import get, open_filesystem, put, remove
from gmd_ray.text import one_line, printable, some

log = logging.getLogger("gmd_ray")

_SAVE_EVERY_S = 1.0
"""The least number of seconds between two saves of the record."""
_SAVE_SHARE = 20
"""Saving takes at most one part in this many of the time: a record of many photos is long."""

Size = tuple[int, int]


class Results:
    """A folder of results, local or on any filesystem.

    Raises:
        ConfigError: the folder cannot be made or written.
    """

    def __init__(self, out: str) -> None:
        self._out = out
        try:
            self._filesystem, self._base = open_filesystem(out)
            probe = f"{self._base}/.gmd-restore.probe"
            put(self._filesystem, probe, b"")
            remove(self._filesystem, probe)
            self._record = read_record(get(self._filesystem, f"{self._base}/{RECORD_FILE}"))
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise ConfigError(f"{out}: cannot be written ({reason}); give another folder for the results") from error
        self._saved_at, self._pause_s, self._unsaved = time.monotonic(), _SAVE_EVERY_S, False

    def sizes(self, photos: Mapping[str, ImageFile], max_pixels: int) -> dict[str, Size | None]:
        """Return (height, width) of each photo, from the record if it is known there; None for unreadable photos."""
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
        """Select the photos whose results are still to be made, and log what is kept and what will be replaced.

        Args:
            photos: id -> photo.
            names: id -> name of the result.
            made_with: digest of the model and its settings.
            overwrite: select photos with finished results too.
        """
        existing = self._existing(list(names.values()))
        todo, foreign, older = [], [], 0
        for key, photo in photos.items():
            entry, size = self._record.get(names[key]), existing.get(names[key])
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
                some([printable(name) for name in foreign], 5),
            )
        return todo

    def add(self, photo: ImageFile, name: str, made_with: str, digest: str, size: int, pixels: Size | None) -> None:
        """Record a written result, and save the record from time to time."""
        height, width = pixels or (0, 0)
        self._record[name] = Finished(
            name, size, made_with, photo.id, digest, photo.size, modified(photo), height, width
        )
        self._unsaved = True
        if time.monotonic() - self._saved_at >= self._pause_s:
            self.save()

    def save(self) -> None:
        """Write the record, if it has changed since it was last saved."""
        if not self._unsaved:
            return
        start = time.monotonic()
        put(self._filesystem, f"{self._base}/{RECORD_FILE}", write_record(self._record.values()))
        self._saved_at, self._unsaved = time.monotonic(), False
        self._pause_s = max(_SAVE_EVERY_S, _SAVE_SHARE * (self._saved_at - start))

    def _existing(self, names: list[str]) -> dict[str, int]:
        """Return the size in bytes of each of these files that exists in the folder."""
        if isinstance(self._filesystem, fs.LocalFileSystem):
            infos = self._filesystem.get_file_info([f"{self._base}/{name}" for name in names])
        else:  # one listing, instead of one round trip per file
            infos = self._filesystem.get_file_info(fs.FileSelector(self._base, recursive=True, allow_not_found=True))
        start = len(self._base) + 1
        return {info.path[start:]: info.size for info in infos if info.type == fs.FileType.File}


def _digest(photo: ImageFile) -> str:
    try:
        return content_digest(read_file(photo.uri))
    except (OSError, GmdError):  # the photo is selected again, and its row will report why it cannot be read
        return ""

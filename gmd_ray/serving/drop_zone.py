"""Photos that a browser sends, restored one after another, and the last few results."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from gmd_ray.errors import DataError, GmdError
from gmd_ray.hashing import content_digest
from gmd_ray.images.files.photo import Photo, encode_photo, read_photo
from gmd_ray.serving.server import Refusal

RestorePhoto = Callable[[Photo, str], Photo]
"""Restores a photo, whose digest seeds a student that draws noise."""
LARGEST_FILE = 32_000_000
"""Bytes of the largest photo that is taken."""
LARGEST_PHOTO = 24_000_000
"""Pixels of the largest photo that is taken, unless `target.max_pixels` is smaller."""
KEPT = 4
"""Number of results that are held for their browsers."""
WAIT_S = 60.0
"""Seconds that a photo waits for the one before it."""


@dataclass(frozen=True)
class RestoredFile:
    """A photo before and after, as PNG files."""

    id: str
    """32 random characters."""
    before: bytes
    after: bytes
    width: int
    """Width of the restored photo in pixels."""
    height: int
    seconds: float
    """Time that the student took, without reading and writing."""


class DropZone:
    """Restores one photo at a time, and loads the student when the first one comes."""

    def __init__(self, load: Callable[[], RestorePhoto], max_pixels: int) -> None:
        """`load` loads the student; `max_pixels` is `target.max_pixels`."""
        self._load, self._max_pixels = load, min(max_pixels, LARGEST_PHOTO)
        self._restore: RestorePhoto | None = None
        self._turn = threading.Lock()
        self._results: OrderedDict[str, RestoredFile] = OrderedDict()

    def take(self, data: bytes) -> RestoredFile:
        """Restore the content of one file.

        Raises:
            Refusal: it is no photo that can be read, it is too large, the student fails at it, or others are waiting.
        """
        if not self._turn.acquire(timeout=WAIT_S):
            raise Refusal(503, "Another photo is being restored. Try again in a moment.")
        try:
            made = self._made(data)
            self._results[made.id] = made
            while len(self._results) > KEPT:
                self._results.popitem(last=False)
            return made
        finally:
            self._turn.release()

    def result(self, key: str) -> RestoredFile | None:
        """A result that is still held; None if there is none of that id."""
        return self._results.get(key)

    def _made(self, data: bytes) -> RestoredFile:
        try:
            photo = read_photo(data, self._max_pixels)
        except DataError as error:
            raise Refusal(400, f"This file cannot be restored: {error}") from error
        except MemoryError as error:
            raise Refusal(413, "This photo needs more memory than there is.") from error
        try:
            if self._restore is None:
                self._restore = self._load()
            began = time.perf_counter()
            made = self._restore(photo, content_digest(data))
            seconds = time.perf_counter() - began
        except GmdError as error:
            raise Refusal(500, f"The student failed: {error}") from error
        height, width = made.rgb.shape[:2]
        before, after = encode_photo(photo, ".png"), encode_photo(made, ".png")
        return RestoredFile(secrets.token_hex(16), before, after, width, height, seconds)

"""The record of finished results in an output folder, which lets a second run skip them.

It is the file `.gmd-restore.jsonl` beside the results. Each line names one result, its photo and the model used.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from gmd_ray.images.listing import ImageFile

RECORD_FILE = ".gmd-restore.jsonl"


@dataclass(frozen=True)
class Finished:
    """One result and the photo it was made from."""

    name: str
    """Path of the result relative to the output folder."""
    size: int
    """Size of the result in bytes. A file of another size was changed or is incomplete."""
    made_with: str
    """Digest of the model and its settings."""
    id: str
    """Id of the photo."""
    digest: str
    """SHA-256 of the photo's bytes."""
    photo_size: int | None
    """Size of the photo in bytes; None if its storage does not list sizes."""
    photo_modified: str | None
    """Last change of the photo (ISO 8601); None if its storage does not list times."""
    height: int
    """Height of the stored photo in pixels."""
    width: int
    """Width of the stored photo in pixels."""

    def of_unchanged(self, photo: ImageFile, digest_of: Callable[[], str]) -> bool:
        """Tell whether this result was made from the photo as it is now.

        Args:
            digest_of: returns the SHA-256 of the photo's present bytes. It is called only if size and time leave doubt.
        """
        if self.id != photo.id:
            return False
        if photo.size is not None and self.photo_size is not None and photo.size != self.photo_size:
            return False
        now = modified(photo)
        if None not in (photo.size, now) and now == self.photo_modified:
            return True
        return digest_of() == self.digest


def modified(photo: ImageFile) -> str | None:
    """Return the time of the last change in the form that `Finished.photo_modified` has."""
    return None if photo.modified is None else photo.modified.isoformat()


def read_record(data: bytes | None) -> dict[str, Finished]:
    """Parse a record into name -> result. Damaged lines are skipped: their photos are restored again."""
    results = {}
    for line in (data or b"").splitlines():
        with contextlib.suppress(ValueError, TypeError):
            entry = Finished(**json.loads(line))
            results[entry.name] = entry
    return results


def write_record(entries: Iterable[Finished]) -> bytes:
    """Serialise a record, sorted by name; `read_record` parses it."""
    return "".join(json.dumps(asdict(entry)) + "\n" for entry in sorted(entries, key=lambda e: e.name)).encode()

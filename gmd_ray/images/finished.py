"""Which results of a folder are finished, of which photo and by which model: so that a second run can leave them.

The record lies among the results, `.gmd-restore.jsonl`, one line for each.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from gmd_ray.images.listing import ImageFile

NAME = ".gmd-restore.jsonl"


@dataclass(frozen=True)
class Finished:
    """One result, and what it was made of."""

    name: str
    """Path relative to the folder of the results."""
    size: int
    """Bytes of the result: one of another size was changed, or is not whole."""
    made_with: str
    """Digest of model and settings."""
    id: str
    """Of the photo."""
    digest: str
    """Of the photo's bytes."""
    photo_size: int | None
    """Bytes of the photo, and time of its last change (ISO 8601), as the listing told them; None where it did not."""
    photo_modified: str | None
    height: int
    width: int
    """Of the photo as it is stored."""

    def of_unchanged(self, photo: ImageFile, digest_of: Callable[[], str]) -> bool:
        """Whether the photo is the one that the result was made of.

        Args:
            digest_of: of the photo as it is now; asked only where size and time do not settle it.
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
    """The time of the last change as `Finished` holds it."""
    return None if photo.modified is None else photo.modified.isoformat()


def read_record(data: bytes | None) -> dict[str, Finished]:
    """Name -> result; a line that is damaged is as if it were not there."""
    found = {}
    for line in (data or b"").splitlines():
        with contextlib.suppress(ValueError, TypeError):
            entry = Finished(**json.loads(line))
            found[entry.name] = entry
    return found


def write_record(entries: Iterable[Finished]) -> bytes:
    """What `read_record` reads."""
    return "".join(json.dumps(asdict(entry)) + "\n" for entry in sorted(entries, key=lambda e: e.name)).encode()

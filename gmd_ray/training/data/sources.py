"""What the source images were when a fine-tune began: one that changed under its name is another image.

`sources.parquet` in the fine-tune's directory has a row for every file: size, time of the last change and a digest of
the content. Where size and time are as they were, one listing is all that a resume costs; where the time alone differs,
as after a copy, the content decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gmd_ray.errors import DataError, ResumeMismatchError
from gmd_ray.hashing import content_digest
from gmd_ray.images.listing import ImageFile, read_file
from gmd_ray.images.sets.pairs import PairFile
from gmd_ray.progress import Progress
from gmd_ray.training.spec import TrainingSpec

NAME = "sources.parquet"

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.timestamp("us", tz="UTC")),
        ("digest", pa.string()),
    ]
)
"""`key` is the side and the name, `hq/city/a.png`: the same wherever the folders lie. `size` and `modified` are null
where the listing does not tell."""

_THREADS = 8
_AHEAD = 64
"""Files that wait to be read: a million futures at once are memory for nothing."""


class SourceFile(NamedTuple):
    """What is known of a file."""

    size: int | None
    modified: datetime | None
    digest: str


Record = dict[str, SourceFile]
"""By key."""


@dataclass(frozen=True)
class Doubts:
    """What a comparison by size and time leaves open."""

    record: Record
    """As the fine-tune began; empty where it kept none."""
    unread: dict[str, ImageFile]
    """Files whose content has to be looked at."""


def compare(spec: TrainingSpec) -> Doubts:
    """Hold the source files against those that the fine-tune was begun with, by name, size and time; nothing is read.

    Raises:
        ResumeMismatchError: naming files that have changed.
        DataError: the record is damaged.
    """
    record = _read(Path(spec.directory, NAME))
    if not record:
        return Doubts({}, {})
    now = files_of(spec)
    if changed := [key for key, file in now.items() if key in record and _has_other_size(record[key], file)]:
        raise ResumeMismatchError(_changed(spec, [now[key].uri for key in changed]))
    # Which files there are is a matter of the settings (`source pairs`); those of the validation stand here alone.
    if strange := now.keys() ^ record.keys():
        raise ResumeMismatchError(_changed(spec, sorted(strange)))
    return Doubts(record, {key: file for key, file in now.items() if not _is_unchanged(record[key], file)})


def settle(spec: TrainingSpec, doubts: Doubts, interval_s: float) -> None:
    """Read the files that are in doubt, and keep the times that they have now.

    Raises:
        ResumeMismatchError: naming files that have changed.
        DataError: a file that cannot be read.
    """
    if not doubts.unread:
        return
    digests = _digests(doubts.unread, "source files with another time", interval_s)
    changed = [doubts.unread[key].uri for key, digest in digests.items() if digest != doubts.record[key].digest]
    if changed:
        raise ResumeMismatchError(_changed(spec, changed))
    fresh = {key: SourceFile(file.size, file.modified, digests[key]) for key, file in doubts.unread.items()}
    _write(Path(spec.directory, NAME), doubts.record | fresh)


def remember(spec: TrainingSpec, interval_s: float) -> bool:
    """Write the record of a fine-tune that is about to begin: each file is read once.

    What this fine-tune or one beside it has read before, and has kept size and time, is not read again.

    Returns:
        Whether files differ from those that an earlier start, which came to no checkpoint, found.

    Raises:
        DataError: a file that cannot be read.
    """
    now = files_of(spec)
    path = Path(spec.directory, NAME)
    if not now:
        path.unlink(missing_ok=True)
        return False
    before = _read(path)
    rows: Record = {}
    for known in sorted(Path(spec.directory).parent.glob(f"*/{NAME}")):
        record = _read(known)
        rows |= {key: record[key] for key, file in now.items() if key in record and _is_unchanged(record[key], file)}
    missing = {key: file for key, file in now.items() if key not in rows}
    digests = _digests(missing, "source files", interval_s)
    rows |= {key: SourceFile(file.size, file.modified, digests[key]) for key, file in missing.items()}
    _write(path, rows)
    return any(row.digest != rows[key].digest for key, row in before.items() if key in rows)


def files_of(spec: TrainingSpec) -> dict[str, ImageFile]:
    """Key -> file of all that the weights depend on; the validation's where it picks what is exported."""
    files = _by_key("", spec.source)
    if spec.cfg.training.export == "best":
        files |= _by_key("held-out ", spec.validation)
    return files


def _by_key(head: str, pairs: Sequence[PairFile]) -> dict[str, ImageFile]:
    return {
        f"{head}{side}/{file.id}": file for pair in pairs for side, file in zip(("hq", "lq"), pair.files, strict=False)
    }


def _has_other_size(row: SourceFile, file: ImageFile) -> bool:
    return row.size is not None and file.size is not None and row.size != file.size


def _is_unchanged(row: SourceFile, file: ImageFile) -> bool:
    """By what the listing tells. A file of an LMDB has no size, and the time of the whole store."""
    return file.modified is not None and (row.size, row.modified) == (file.size, file.modified)


def _digests(files: dict[str, ImageFile], label: str, interval_s: float) -> dict[str, str]:
    """Key -> digest of the content, read by several threads."""
    if not files:
        return {}
    found: dict[str, str] = {}
    remaining = iter(files.items())
    with ThreadPoolExecutor(_THREADS, "sources") as pool, Progress(label, len(files), "file", interval_s) as progress:
        try:
            while batch := list(islice(remaining, _AHEAD)):
                read = pool.map(_digest, [file for _, file in batch])
                for (key, _), digest in zip(batch, read, strict=True):
                    found[key] = digest
                    progress.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def _digest(file: ImageFile) -> str:
    try:
        return content_digest(read_file(file.uri))
    except OSError as error:
        raise DataError(f"{file.uri}: cannot be read: {' '.join(str(error).split())}") from error


def _changed(spec: TrainingSpec, names: Sequence[str]) -> str:
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"{spec.directory} was begun with other source images ({some}): put them back, or remove the directory to "
        f"train anew, or give another out="
    )


def _read(path: Path) -> Record:
    if not path.is_file():
        return {}
    try:
        columns = pq.read_table(path, schema=SCHEMA).to_pydict()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: damaged ({reason}); remove it where the source is as it was") from error
    rows = map(SourceFile, columns["size"], columns["modified"], columns["digest"])
    return dict(zip(columns["key"], rows, strict=True))


def _write(path: Path, record: Record) -> None:
    columns = dict(zip(SourceFile._fields, zip(*record.values(), strict=True), strict=True))
    draft = path.with_name(f".{path.name}.tmp")
    pq.write_table(pa.table({"key": list(record), **columns}, schema=SCHEMA), draft)
    draft.replace(path)

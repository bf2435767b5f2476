"""A record of the source images of a fine-tune, which refuses images that changed under their names.

`sources.parquet` in the fine-tune's directory has a row for every file: size, time of the last change and a digest of
the content. If size and time are unchanged, a resume costs one listing; if the time alone differs, as after a copy, the
content decides.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from gmd_ray.config.places import above, below
from gmd_ray.errors import DataError, ResumeMismatchError
from gmd_ray.hashing import content_digest
from gmd_ray.images.listing import ImageFile, read_file
from gmd_ray.images.sets.pairs import PairFile
from gmd_ray.progress import Progress
from gmd_ray.storage import open_filesystem, read_bytes, remove_file, write_bytes
from gmd_ray.text import one_line
from gmd_ray.training.spec import TrainingSpec

SOURCES_FILE = "sources.parquet"

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.timestamp("us", tz="UTC")),
        ("digest", pa.string()),
    ]
)
"""`key` is the side and the file's id, as in `hq/city/a.png`, which does not change when the folder moves. `size` and
`modified` are null if the listing does not have them."""

_THREADS = 8
_AHEAD = 64
"""Files that are queued for reading at a time: a million futures at once would waste memory."""


class SourceFile(NamedTuple):
    """One row of the record."""

    size: int | None
    modified: datetime | None
    digest: str


Record = dict[str, SourceFile]
"""Rows by `key`."""


@dataclass(frozen=True)
class Doubts:
    """The result of a comparison by size and time."""

    record: Record
    """The record of the fine-tune's beginning; empty if it kept none."""
    unread: dict[str, ImageFile]
    """Files whose content has to be compared."""


def compare(spec: TrainingSpec) -> Doubts:
    """Compare the source files with those that the fine-tune was begun with, by name, size and time, without reading.

    Raises:
        ResumeMismatchError: files have changed; the message names some.
        DataError: the record is damaged.
    """
    record = _read(below(spec.directory, SOURCES_FILE))
    if not record:
        return Doubts({}, {})
    now = files_of(spec)
    if changed := [key for key, file in now.items() if key in record and _has_other_size(record[key], file)]:
        raise ResumeMismatchError(_changed(spec, [now[key].uri for key in changed]))
    # The setting `source pairs` compares the names of the training files; this finds changed names of validation files.
    if strange := now.keys() ^ record.keys():
        raise ResumeMismatchError(_changed(spec, sorted(strange)))
    return Doubts(record, {key: file for key, file in now.items() if not _is_unchanged(record[key], file)})


def settle(spec: TrainingSpec, doubts: Doubts, interval_s: float) -> None:
    """Read the files that `compare` could not decide on, and record their new times if the content is the same.

    Raises:
        ResumeMismatchError: files have changed; the message names some.
        DataError: a file cannot be read.
    """
    if not doubts.unread:
        return
    digests = _digests(doubts.unread, "source files with another time", interval_s)
    changed = [doubts.unread[key].uri for key, digest in digests.items() if digest != doubts.record[key].digest]
    if changed:
        raise ResumeMismatchError(_changed(spec, changed))
    fresh = {key: SourceFile(file.size, file.modified, digests[key]) for key, file in doubts.unread.items()}
    _write(below(spec.directory, SOURCES_FILE), doubts.record | fresh)


def remember(spec: TrainingSpec, interval_s: float) -> bool:
    """Write the record of a fine-tune that is about to begin, reading each file once.

    Files that the record of this run or of another fine-tune beside it has with the same size and time are not read
    again.

    Returns:
        True if files differ from those of an earlier start that reached no checkpoint.

    Raises:
        DataError: a file cannot be read.
    """
    now = files_of(spec)
    path = below(spec.directory, SOURCES_FILE)
    if not now:
        remove_file(path)
        return False
    before = _read(path)
    rows: Record = {}
    for known in _records_beside(spec.directory):
        record = _read(known)
        rows |= {key: record[key] for key, file in now.items() if key in record and _is_unchanged(record[key], file)}
    missing = {key: file for key, file in now.items() if key not in rows}
    digests = _digests(missing, "source files", interval_s)
    rows |= {key: SourceFile(file.size, file.modified, digests[key]) for key, file in missing.items()}
    _write(path, rows)
    return any(row.digest != rows[key].digest for key, row in before.items() if key in rows)


def files_of(spec: TrainingSpec) -> dict[str, ImageFile]:
    """The files that the weights depend on, by key; validation files are among them if they choose the export."""
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
    """Compare size and time of change. A file in an LMDB has no size, and the time of the whole store."""
    return file.modified is not None and (row.size, row.modified) == (file.size, file.modified)


def _digests(files: dict[str, ImageFile], label: str, interval_s: float) -> dict[str, str]:
    """Digests of the files' content by key, read by several threads."""
    if not files:
        return {}
    digests: dict[str, str] = {}
    remaining = iter(files.items())
    with ThreadPoolExecutor(_THREADS, "sources") as pool, Progress(label, len(files), "file", interval_s) as progress:
        try:
            while batch := list(islice(remaining, _AHEAD)):
                read = pool.map(_digest, [file for _, file in batch])
                for (key, _), digest in zip(batch, read, strict=True):
                    digests[key] = digest
                    progress.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return digests


def _digest(file: ImageFile) -> str:
    try:
        return content_digest(read_file(file.uri))
    except OSError as error:
        raise DataError(f"{file.uri}: cannot be read: {' '.join(str(error).split())}") from error


def _changed(spec: TrainingSpec, names: Sequence[str]) -> str:
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"{spec.directory} was begun with other source images ({some}); restore them, or remove the directory to "
        f"train from the start, or give another out="
    )


def _records_beside(directory: str) -> list[str]:
    """The records of all fine-tunes of a run that have one, by name."""
    runs = above(directory)
    filesystem, path = open_filesystem(runs)
    infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)
    return [below(runs, f"{name}/{SOURCES_FILE}") for name in names]


def _read(path: str) -> Record:
    data = read_bytes(path)
    if data is None:
        return {}
    try:
        columns = pq.read_table(io.BytesIO(data), schema=SCHEMA).to_pydict()
    except (pa.ArrowException, OSError) as error:
        reason = one_line(error, 200)
        raise DataError(f"{path}: damaged ({reason}); remove it if the source images have not changed") from error
    rows = map(SourceFile, columns["size"], columns["modified"], columns["digest"])
    return dict(zip(columns["key"], rows, strict=True))


def _write(path: str, record: Record) -> None:
    columns = dict(zip(SourceFile._fields, zip(*record.values(), strict=True), strict=True))
    sink = io.BytesIO()
    pq.write_table(pa.table({"key": list(record), **columns}, schema=SCHEMA), sink)
    write_bytes(path, sink.getvalue())

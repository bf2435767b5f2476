"""Finds photos that changed under their own names since their rows were made.

The sizes and times of one listing of the folder are compared with those in the rows. A photo with the same size and
time is unchanged and is not read. One with another size has changed. One with the same size and another time is read,
and its digest decides.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gmd_ray.errors import GmdError
from gmd_ray.hashing import content_digest
from gmd_ray.images.listing import ImageFile, read_file
from gmd_ray.pairstore.schema import PAIR_SCHEMA
from gmd_ray.pairstore.store import PairStore
from gmd_ray.progress import Progress
from gmd_ray.storage import get, map_threads, put, with_retries
from gmd_ray.text import one_line

log = logging.getLogger("gmd_ray.generation")

STAMPS_FILE = "unchanged.parquet"
"""Name of the store's file of photos whose time differed from their row's while their digest did not: their sizes and
times, so that they are not read again."""
_STAMPS = pa.schema([PAIR_SCHEMA.field(name) for name in ("id", "bytes", "modified")])
_AT_ONCE = 4096
"""Number of photos whose rows' digests are read together; `storage.READERS` photos are in memory at a time."""


class Comparison:
    """Compares all rows of a store, failed ones too, with the photos of a listing; rows without a photo are skipped."""

    def __init__(self, rows: pa.Table, files: Sequence[ImageFile], confirmed: pa.Table, every: bool = False) -> None:
        """Compare sizes and times.

        Args:
            rows: columns id, bytes, modified.
            files: the listing.
            confirmed: the result of `confirmed_stamps`.
            every: leave nothing to sizes and times: `read` compares the digest of every row that has one.
        """
        self._files = {file.id: file for file in files}
        listing = pa.Table.from_arrays(
            [
                pa.array([file.id for file in files], pa.string()),
                pa.array([file.size for file in files], pa.int64()),
                pa.array([file.modified for file in files], _STAMPS.field("modified").type),
            ],
            schema=_STAMPS,
        )
        # Bring the listing into the order of the rows; rows whose photo is not listed are dropped.
        at = pc.index_in(rows["id"], value_set=listing["id"])
        there = pc.is_valid(at)
        rows, now = rows.filter(there), listing.take(at.filter(there))
        recorded = pc.or_(pc.is_valid(rows["bytes"]), pc.is_valid(rows["modified"]))
        # Another size is another photo; an unknown size says nothing.
        resized = pc.fill_null(pc.not_equal(rows["bytes"], now["bytes"]), False)
        # A time counts as the same if it is the row's, or, with the size, that of a photo confirmed earlier.
        seen = confirmed.take(pc.index_in(rows["id"], value_set=confirmed["id"]))
        confirmed_before = pc.and_(_same_time(seen, now), pc.equal(_plain(seen["bytes"]), _plain(now["bytes"])))
        same = pc.or_(_same_time(rows, now), confirmed_before)
        # Rows of the same size: those of the same time are unchanged, and the digest decides on the others.
        alike = pc.and_(recorded, pc.invert(resized))
        retimed = pc.and_(alike, pc.invert(same))
        doubtful = alike if every else retimed
        self.unknown: int = rows.num_rows - (pc.sum(recorded).as_py() or 0)
        """Number of rows without size and time of their photo: they were made by an earlier version."""
        self.doubtful: list[str] = rows["id"].filter(doubtful).to_pylist()
        """Ids that can only be decided by their digest."""
        self.changed: list[str] = rows["id"].filter(resized).to_pylist()
        """Ids whose photo is not the one that their row was made of."""
        self.disguised: list[str] = []
        """Ids among `changed` whose photo has the size and the time of the one before it."""
        self._alike = set(rows["id"].filter(pc.and_(alike, same)).to_pylist()) if every else set()
        self.equal: list[str] = []
        """Ids among `doubtful` whose digest is that of their row."""
        self.unread: dict[str, str] = {}
        """Id among `doubtful` -> why its photo could not be read; it is in none of the other lists."""

    def read(
        self, digests: Callable[[list[str]], Mapping[str, str | None]], tick: Callable[[int], None] = lambda _: None
    ) -> None:
        """Read the doubtful photos and compare them with the digests of their rows.

        Args:
            digests: gives the rows' digests of some ids; None where the file could not be read when the row was made.
            tick: is called with the number of photos that were read since the last call.
        """
        for start in range(0, len(self.doubtful), _AT_ONCE):
            ids = self.doubtful[start : start + _AT_ONCE]
            known = digests(ids)
            for key, found in zip(ids, map_threads(lambda key: _digest(self._files[key].uri), ids), strict=True):
                tick(1)
                if isinstance(found, Exception):
                    # A row that failed because its file could not be read is no worse off.
                    if known.get(key) is not None:
                        self.unread[key] = one_line(found)
                elif found == known.get(key):
                    self.equal.append(key)
                elif key not in self._alike:
                    self.changed.append(key)
                elif known.get(key) is not None:
                    self.changed.append(key)
                    self.disguised.append(key)

    def stamps(self, ids: Sequence[str]) -> pa.Table:
        """Make a table of the sizes and times of these photos, as they are listed."""
        files = [self._files[key] for key in ids]
        rows = [{"id": file.id, "bytes": file.size, "modified": file.modified} for file in files]
        return pa.Table.from_pylist(rows, schema=_STAMPS)


def changed_photos(store: PairStore, files: Sequence[ImageFile], interval_s: float = 10.0) -> list[str]:
    """List the ids of rows whose photo has changed, sorted.

    Photos that were read and found unchanged are remembered in the store, so that a folder that was copied is read
    once, not by each run.

    Args:
        interval_s: seconds between lines of progress.
    """
    confirmed = confirmed_stamps(store)
    compared = Comparison(store.index(), files, confirmed)
    if compared.unknown:
        log.info(
            "%s: %d rows do not record size and time of their photo, since an earlier version made them; those photos "
            "are taken for unchanged",
            store.url,
            compared.unknown,
        )
    if compared.doubtful:
        log.info("%d photos have another time than in their rows, and are read to be compared", len(compared.doubtful))
        try:
            with Progress("compare", len(compared.doubtful), interval_s=interval_s) as progress:
                compared.read(lambda ids: store.digests(ids), progress.update)
        finally:
            _remember(store, confirmed, compared)
    elif compared.changed:
        _remember(store, confirmed, compared)
    for key, reason in list(compared.unread.items())[:1]:
        log.warning(
            "%d photos could not be read to be compared with their rows, and are taken for unchanged (%s: %s)",
            len(compared.unread),
            key,
            reason,
        )
    return sorted(compared.changed)


def confirmed_stamps(store: PairStore) -> pa.Table:
    """Read columns id, bytes, modified of photos that an earlier run confirmed by their digests."""
    data = get(store.filesystem, f"{store.path}/{STAMPS_FILE}")
    if data is None:
        return _STAMPS.empty_table()
    try:
        return pq.read_table(io.BytesIO(data), schema=_STAMPS)
    except (pa.ArrowException, OSError):  # the file only saves work
        return _STAMPS.empty_table()


def _remember(store: PairStore, confirmed: pa.Table, compared: Comparison) -> None:
    """Save the confirmed photos; changed ones are removed here before their rows are dropped."""
    gone = pa.array([*compared.changed, *compared.equal], pa.string())
    kept = confirmed.filter(pc.invert(pc.is_in(confirmed["id"], gone)))
    if not compared.equal and kept.num_rows == confirmed.num_rows:
        return
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables([kept, compared.stamps(compared.equal)]), sink, compression="zstd")
    with_retries(lambda: put(store.filesystem, f"{store.path}/{STAMPS_FILE}", memoryview(sink.getvalue())))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast to numbers, with -1 for null, so that two nulls compare equal."""
    return pc.fill_null(pc.cast(column, pa.int64()), -1)


def _same_time(rows: pa.Table, now: pa.Table) -> pa.ChunkedArray:
    return pc.equal(_plain(rows["modified"]), _plain(now["modified"]))


def _digest(uri: str) -> str | Exception:
    try:
        return content_digest(with_retries(lambda: read_file(uri)))
    except (OSError, GmdError) as error:
        return error

"""Photos that changed under their own names since their rows were made.

One listing of the folder is held against the size and time in the rows. What has the same of both is unchanged, and is
not read; another size is another photo; the same size and another time is read, and its digest decides.
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
"""Of the store: size and time of photos whose digest was found to be their row's though their time was not."""
_STAMPS = pa.schema([PAIR_SCHEMA.field(name) for name in ("id", "bytes", "modified")])
_AT_ONCE = 4096
"""Photos whose digests are asked for together; `files.READERS` of them are in memory at a time."""


class Comparison:
    """Rows of a store against the photos that are there now; failed rows too. Rows without their photo are left out."""

    def __init__(self, rows: pa.Table, files: Sequence[ImageFile], confirmed: pa.Table, every: bool = False) -> None:
        """Compare sizes and times.

        Args:
            rows: columns id, bytes, modified.
            files: the listing.
            confirmed: what `confirmed_stamps` gave.
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
        at = pc.index_in(rows["id"], value_set=listing["id"])
        there = pc.is_valid(at)
        rows, now = rows.filter(there), listing.take(at.filter(there))
        told = pc.or_(pc.is_valid(rows["bytes"]), pc.is_valid(rows["modified"]))
        resized = pc.fill_null(pc.not_equal(rows["bytes"], now["bytes"]), False)
        seen = confirmed.take(pc.index_in(rows["id"], value_set=confirmed["id"]))
        same = _same_time(rows, now)
        same = pc.or_(same, pc.and_(_same_time(seen, now), pc.equal(_plain(seen["bytes"]), _plain(now["bytes"]))))
        alike = pc.and_(told, pc.invert(resized))
        retimed = pc.and_(alike, pc.invert(same))
        doubtful = alike if every else retimed
        self.unknown: int = rows.num_rows - (pc.sum(told).as_py() or 0)
        """Rows that say nothing of their photo's file: made before there were such columns."""
        self.doubtful: list[str] = rows["id"].filter(doubtful).to_pylist()
        """Ids that only their digest can decide on."""
        self.changed: list[str] = rows["id"].filter(resized).to_pylist()
        """Ids whose photo is another than their row's."""
        self.disguised: list[str] = []
        """Of `changed`, those that have size and time of the photo before them."""
        self._alike = set(rows["id"].filter(pc.and_(alike, same)).to_pylist()) if every else set()
        self.equal: list[str] = []
        """Ids of `doubtful` whose digest is that of their row."""
        self.unread: dict[str, str] = {}
        """Ids of `doubtful` that could not be read, and why; nothing is said of them."""

    def read(
        self, digests: Callable[[list[str]], Mapping[str, str | None]], tick: Callable[[int], None] = lambda _: None
    ) -> None:
        """Read the doubtful photos, and hold them against the digests of their rows.

        Args:
            digests: of the rows of some ids; None where the file could not be read when the row was made.
            tick: is told of every photo that was read.
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
        """Size and time of these photos as they are listed."""
        files = [self._files[key] for key in ids]
        rows = [{"id": file.id, "bytes": file.size, "modified": file.modified} for file in files]
        return pa.Table.from_pylist(rows, schema=_STAMPS)


def changed_photos(store: PairStore, files: Sequence[ImageFile], interval_s: float = 10.0) -> list[str]:
    """Ids of rows whose photo is another by now, sorted.

    What was read for it is remembered in the store, so that a folder that was copied is read once, not by each run.

    Args:
        interval_s: between lines of progress.
    """
    confirmed = confirmed_stamps(store)
    compared = Comparison(store.index(), files, confirmed)
    if compared.unknown:
        log.info(
            "%s: %d rows were made before rows told of the file they are of; whether those photos have changed cannot "
            "be seen, and they are taken for unchanged",
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
    """Columns id, bytes, modified of photos that an earlier run found to be those of their rows, by their digests."""
    data = get(store.filesystem, f"{store.path}/{STAMPS_FILE}")
    if data is None:
        return _STAMPS.empty_table()
    try:
        return pq.read_table(io.BytesIO(data), schema=_STAMPS)
    except (pa.ArrowException, OSError):  # it only spares work
        return _STAMPS.empty_table()


def _remember(store: PairStore, confirmed: pa.Table, compared: Comparison) -> None:
    """Write down what was confirmed; what is known to be changed goes, before its row does."""
    gone = pa.array([*compared.changed, *compared.equal], pa.string())
    kept = confirmed.filter(pc.invert(pc.is_in(confirmed["id"], gone)))
    if not compared.equal and kept.num_rows == confirmed.num_rows:
        return
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables([kept, compared.stamps(compared.equal)]), sink, compression="zstd")
    with_retries(lambda: put(store.filesystem, f"{store.path}/{STAMPS_FILE}", memoryview(sink.getvalue())))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """As numbers, with one for null: two nulls are the same."""
    return pc.fill_null(pc.cast(column, pa.int64()), -1)


def _same_time(rows: pa.Table, now: pa.Table) -> pa.ChunkedArray:
    return pc.equal(_plain(rows["modified"]), _plain(now["modified"]))


def _digest(uri: str) -> str | Exception:
    try:
        return content_digest(with_retries(lambda: read_file(uri)))
    except (OSError, GmdError) as error:
        return error

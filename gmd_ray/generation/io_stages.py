"""The first and the last stage of the stream: files become rows, and rows become part files of the store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from gmd_ray.config import Config
from gmd_ray.config.secrets import known, redact, remember
from gmd_ray.errors import GmdError
from gmd_ray.generation.attempts.remote import AnyAttemptLog
from gmd_ray.generation.fault_isolation import UNBOUNDED, FaultIsolation, Row, one_by_one, to_table
from gmd_ray.generation.watchdog import Bound
from gmd_ray.hashing import content_digest
from gmd_ray.images.files.decode import decode_8bit
from gmd_ray.images.files.encode import encode_png
from gmd_ray.images.listing import ImageFile, read_file
from gmd_ray.pairstore.lock import StoreLostError, held, lock_path
from gmd_ray.pairstore.parts import write_part
from gmd_ray.pairstore.schema import PAIR_SCHEMA
from gmd_ray.pairstore.store import PairStore
from gmd_ray.storage import with_retries
from gmd_ray.text import one_line

SUMMARY = ["id", "status", "score", "fidelity", "seconds_restore", "seconds_project", "seconds_score"]
"""Columns of a block that is written. Only they go to the driver."""


def input_blocks(files: Sequence[ImageFile], rows_per_block: int) -> list[pa.Table]:
    """Divide the files of a run into blocks with the columns id, uri, bytes and modified, in their order.

    The rows of a block travel, are retried and become one part file together.
    """
    return [_input_block(files[start : start + rows_per_block]) for start in range(0, len(files), rows_per_block)]


def _input_block(files: Sequence[ImageFile]) -> pa.Table:
    columns = {"id": "id", "uri": "uri", "bytes": "size", "modified": "modified"}
    return pa.table(
        {
            name: pa.array([getattr(file, field) for file in files], PAIR_SCHEMA.field(name).type)
            for name, field in columns.items()
        }
    )


def read_arguments(cfg: Config, log: AnyAttemptLog, bound: Bound, own_process: bool = True) -> dict[str, Any]:
    """Return the keyword arguments of `read_images` for a run."""
    return {
        "gray": cfg.target.gray,
        "max_pixels": cfg.target.max_pixels,
        "log": log,
        "max_attempts": cfg.generation.max_attempts,
        "bound": bound,
        "own_process": own_process,
    }


def read_images(
    table: pa.Table,
    gray: bool,
    max_pixels: int,
    log: AnyAttemptLog,
    max_attempts: int,
    bound: Bound = UNBOUNDED,
    own_process: bool = True,
) -> pa.Table:
    """Read and decode the files of a block.

    Args:
        table: a block of `input_blocks`; `bytes` and `modified` are as listed.
        gray: turn images to gray.
        max_pixels: a larger image is a failed row.
        log: the attempt log of the run.
        max_attempts: see `FaultIsolation`.
        bound: how long a file may take.
        own_process: see `FaultIsolation`.

    Returns:
        rows of PAIR_SCHEMA with `lq` (PNG), or failed at stage `read`. `bytes` and `digest` are of the very content
        that was decoded. `modified` is older than that: a file that changes between the listing and here has another
        time in the next listing, and is then compared by its digest.
    """
    if log.closed():
        return to_table([])

    def work(rows: list[Row]) -> list[Row]:
        columns = []
        for row in rows:
            data = with_retries(partial(read_file, row["uri"]))
            row.update(bytes=len(data), digest=content_digest(data))  # also of a file that cannot be decoded
            columns.append({"lq": encode_png(decode_8bit(data, gray=gray, max_pixels=max_pixels))})
        return columns

    rows = [{"status": "ok", "attempts": 0, **row} for row in table.to_pylist()]
    FaultIsolation("read", log, max_attempts, bound=bound, own_process=own_process).run(rows, work, one_by_one)
    return to_table(rows)


def write_arguments(cfg: Config, log: AnyAttemptLog, store_url: str, token: str) -> dict[str, Any]:
    """Return the keyword arguments of `write_rows` for a run whose driver holds the store's lock with this token."""
    return {
        "store_url": store_url,
        "token": token,
        "keep_restored": cfg.generation.keep_restored,
        "log": log,
        "hide": known(),
    }


def write_rows(
    table: pa.Table,
    store_url: str,
    token: str,
    keep_restored: bool,
    log: AnyAttemptLog,
    hide: Sequence[str] = (),
) -> pa.Table:
    """Write a block as one part file of the store.

    A repeated task writes a file of the same name again. A task of a driver that no longer holds the lock writes
    nothing: its rows may be in the store already, made by the driver that took over.

    Args:
        table: rows of PAIR_SCHEMA.
        store_url: the pair store.
        token: of the store's lock, as this run's driver holds it.
        keep_restored: leave the restored images in the rows.
        log: the attempt log of the run, to which an error is reported.
        hide: secrets. They, and those that URLs contain, are in no column that is written; the id finds a photo again.

    Returns:
        the columns SUMMARY of the block.

    Raises:
        StoreLostError: the lock is no longer held with this token.
        GmdError: storage that cannot be written.
    """
    if not table.num_rows:  # all of them were left to the next run
        return table.select(SUMMARY)
    store = PairStore(store_url)
    table = without_secrets(table, hide)
    if not keep_restored:
        index = PAIR_SCHEMA.get_field_index("restored")
        table = table.set_column(index, PAIR_SCHEMA.field(index), pa.nulls(table.num_rows, pa.binary()))
    try:
        if not with_retries(lambda: held(store.filesystem, lock_path(store.path), token)):
            raise StoreLostError(f"{store_url}: the lock of this run is gone; another driver may be at work here")
        with_retries(lambda: write_part(store.filesystem, store.rows_path, table))
    except (OSError, GmdError) as error:
        if isinstance(error, GmdError):
            reason = error
        else:
            reason = GmdError(
                f"{store_url}: cannot write: {one_line(error)}; what is written stays, and the same command goes on "
                f"once that is mended"
            )
        log.fail(reason)
        raise reason from error
    return table.select(SUMMARY)


def without_secrets(table: pa.Table, hide: Sequence[str]) -> pa.Table:
    """Return the rows with `***` for secrets in `uri` and `error`."""
    for secret in hide:
        remember(secret)
    for name in ("uri", "error"):
        texts = [None if text is None else redact(text) for text in table[name].to_pylist()]
        table = table.set_column(table.column_names.index(name), PAIR_SCHEMA.field(name), pa.array(texts, pa.string()))
    return table

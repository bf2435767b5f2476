"""The first stage of the stream: files become rows."""

from __future__ import annotations

from functools import partial

import pyarrow as pa
import ray

from gmd_ray.generation.quarantine import UNBOUNDED, Quarantine, Row, one_by_one, to_table
from gmd_ray.generation.watchdog import Bound
from gmd_ray.hashing import content_digest
from gmd_ray.images.files.decode import decode_8bit
from gmd_ray.images.files.encode import encode_png
from gmd_ray.images.listing import read_file
from gmd_ray.storage import with_retries


def read_images(
    table: pa.Table,
    gray: bool,
    max_pixels: int,
    ledger: ray.actor.ActorHandle,
    max_attempts: int,
    bound: Bound = UNBOUNDED,
) -> pa.Table:
    """Inputs: columns id and uri; bytes and modified as listed. Outputs: rows of PAIR_SCHEMA, failed at `read` or not.

    `bytes` and `digest` are of the very content that was decoded. `modified` is older than that: a file that changes
    between the listing and here has another time in the next listing, and is then held against its digest.
    """

    if ray.get(ledger.closed.remote()):
        return to_table([])

    def work(rows: list[Row]) -> list[Row]:
        columns = []
        for row in rows:
            data = with_retries(partial(read_file, row["uri"]))
            row.update(bytes=len(data), digest=content_digest(data))  # of a file that does not decode too
            columns.append({"lq": encode_png(decode_8bit(data, gray=gray, max_pixels=max_pixels))})
        return columns

    rows = [{"status": "ok", "attempts": 0, **row} for row in table.to_pylist()]
    Quarantine("read", ledger, max_attempts, bound=bound).run(rows, work, one_by_one)
    return to_table(rows)

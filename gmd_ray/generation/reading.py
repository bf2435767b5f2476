"""The first stage of the stream: files become rows."""

from __future__ import annotations

from functools import partial

import pyarrow as pa
import ray

from gmd_ray.generation.files import patiently
from gmd_ray.generation.quarantine import Quarantine, Row, one_by_one, to_table
from gmd_ray.images.decode import decode_8bit
from gmd_ray.images.encode import encode_png
from gmd_ray.images.listing import read_file


def read_images(
    table: pa.Table, gray: bool, max_pixels: int, ledger: ray.actor.ActorHandle, max_attempts: int
) -> pa.Table:
    """Inputs: columns id, uri. Outputs: rows of PAIR_SCHEMA with `lq`, or failed at stage `read`."""

    if ray.get(ledger.closed.remote()):
        return to_table([])

    def work(rows: list[Row]) -> list[Row]:
        files = [patiently(partial(read_file, row["uri"])) for row in rows]
        # One after the other: a decoded picture is a hundred times its file.
        return [{"lq": encode_png(decode_8bit(data, gray=gray, max_pixels=max_pixels))} for data in files]

    rows = [{"status": "ok", "attempts": 0, **row} for row in table.to_pylist()]
    Quarantine("read", ledger, max_attempts).run(rows, work, one_by_one)
    return to_table(rows)

"""The last stage of the stream: blocks of rows become part files, and only their summary goes to the driver."""

from __future__ import annotations

import pyarrow as pa
import ray

from gmd_ray.errors import GmdError
from gmd_ray.generation.files import patiently
from gmd_ray.generation.lock import StoreLostError, held, lock_path
from gmd_ray.generation.parts import write_part
from gmd_ray.generation.quarantine import one_line
from gmd_ray.generation.store import PairStore
from gmd_ray.images.records import PAIR_SCHEMA

SUMMARY = ["id", "status", "score", "fidelity", "seconds_restore", "seconds_project", "seconds_score"]


def write_rows(
    table: pa.Table, store_url: str, token: str, keep_restored: bool, ledger: ray.actor.ActorHandle
) -> pa.Table:
    """Inputs: rows of PAIR_SCHEMA. Outputs: columns SUMMARY.

    A repeated task writes the same name again. A task of a driver that no longer holds the lock writes nothing: its
    rows may be in the store already, made by the driver that took over.
    """
    if not table.num_rows:  # all of them left to the next run
        return table.select(SUMMARY)
    store = PairStore(store_url)
    if not keep_restored:
        index = PAIR_SCHEMA.get_field_index("restored")
        table = table.set_column(index, PAIR_SCHEMA.field(index), pa.nulls(table.num_rows, pa.binary()))
    try:
        if not patiently(lambda: held(store.filesystem, lock_path(store.path), token)):
            raise StoreLostError(f"{store_url}: the lock of this run is gone; another driver may be at work here")
        patiently(lambda: write_part(store.filesystem, store.rows_path, table))
    except (OSError, GmdError) as error:
        reason: Exception = error
        if not isinstance(error, GmdError):
            reason = GmdError(
                f"{store_url}: cannot write: {one_line(error)}; what is written stays, and the same command goes on "
                f"once that is mended"
            )
        ray.get(ledger.fail.remote(reason))
        raise reason from error
    return table.select(SUMMARY)

"""The last stage of the stream: blocks of rows become part files, and only their summary goes to the driver."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import ray

from gmd_ray.config.secrets import redact, remember
from gmd_ray.errors import GmdError
from gmd_ray.pairstore.lock import StoreLostError, held, lock_path
from gmd_ray.pairstore.parts import write_part
from gmd_ray.pairstore.schema import PAIR_SCHEMA
from gmd_ray.pairstore.store import PairStore
from gmd_ray.storage import with_retries
from gmd_ray.text import one_line

SUMMARY = ["id", "status", "score", "fidelity", "seconds_restore", "seconds_project", "seconds_score"]


def write_rows(
    table: pa.Table,
    store_url: str,
    token: str,
    keep_restored: bool,
    ledger: ray.actor.ActorHandle,
    hide: Sequence[str] = (),
) -> pa.Table:
    """Inputs: rows of PAIR_SCHEMA. Outputs: columns SUMMARY.

    The secrets in `hide`, and those that URLs tell of themselves, are in no column that is written: the id finds a
    photo again.

    A repeated task writes the same name again. A task of a driver that no longer holds the lock writes nothing: its
    rows may be in the store already, made by the driver that took over.
    """
    if not table.num_rows:  # all of them left to the next run
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
        reason: Exception = error
        if not isinstance(error, GmdError):
            reason = GmdError(
                f"{store_url}: cannot write: {one_line(error)}; what is written stays, and the same command goes on "
                f"once that is mended"
            )
        ray.get(ledger.fail.remote(reason))
        raise reason from error
    return table.select(SUMMARY)


def without_secrets(table: pa.Table, hide: Sequence[str]) -> pa.Table:
    """Rows with `***` for secrets in `uri` and `error`."""
    for secret in hide:
        remember(secret)
    for name in ("uri", "error"):
        texts = [None if text is None else redact(text) for text in table[name].to_pylist()]
        table = table.set_column(table.column_names.index(name), PAIR_SCHEMA.field(name), pa.array(texts, pa.string()))
    return table

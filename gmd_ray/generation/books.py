"""The books of a pair store: every input has exactly one final state, and the sums say so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from gmd_ray.errors import BooksError
from gmd_ray.images.records import PAIR_SCHEMA, FidelityBound, accepted


@dataclass(frozen=True)
class Books:
    """Counts of inputs by what became of them."""

    inputs: int
    accepted: int
    rejected: int
    failed: int
    resumed: int
    """Of the inputs, done by earlier runs."""
    strangers: int
    """Rows in the store whose image is no longer among the inputs; in none of the counts above."""
    threshold: float
    seconds: float
    """Wall time of this run."""
    fidelity_bound: float | None = None
    """The second opinion asked for, on the scale of `scorer.fidelity`."""

    @property
    def ok(self) -> int:
        return self.accepted + self.rejected

    def __str__(self) -> str:
        bound = "" if self.fidelity_bound is None else f" and fidelity bound {self.fidelity_bound:g}"
        return (
            f"{self.inputs} inputs = {self.accepted} accepted + {self.rejected} rejected + {self.failed} failed "
            f"at threshold {self.threshold:g}{bound} ({self.resumed} from earlier runs, {self.seconds:.0f} s)"
        )

    def counts(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


def close_books(
    rows: pa.Table,
    inputs: Collection[str],
    *,
    resumed: int,
    threshold: float,
    higher_is_better: bool,
    seconds: float,
    fidelity: FidelityBound | None = None,
) -> Books:
    """Count the rows of a store against the inputs.

    Args:
        rows: columns id, status, score of the whole store, and fidelity where it is bounded.
        inputs: ids of the input folder.
        fidelity: the bound of the accepted view.

    Raises:
        BooksError: naming inputs without a row, or with more than one, or rows that are neither ok nor failed.
    """
    known = set(inputs)
    seen = Counter(rows["id"].to_pylist())
    lost = sorted(known - seen.keys())
    twice = sorted(key for key, count in seen.items() if count > 1)
    for what, ids in (("have no row", lost), ("have more than one row", twice)):
        if ids:
            raise BooksError(f"books do not balance: {len(ids)} of {len(known)} inputs {what} ({', '.join(ids[:3])})")
    names = ["status", "score"] + (["fidelity"] if fidelity else [])
    mine = rows.select(names).filter(pa.array([key in known for key in rows["id"].to_pylist()], pa.bool_()))
    failed = sum(status == "failed" for status in mine["status"].to_pylist())
    ok = sum(status == "ok" for status in mine["status"].to_pylist())
    if ok + failed != len(known):
        raise BooksError(f"books do not balance: {ok} ok + {failed} failed of {len(known)} inputs")
    schema = pa.schema([PAIR_SCHEMA.field(name) for name in names])
    view = mine.cast(schema).filter(accepted(threshold, higher_is_better, fidelity=fidelity))
    return Books(
        inputs=len(known),
        accepted=view.num_rows,
        rejected=ok - view.num_rows,
        failed=failed,
        resumed=resumed,
        strangers=len(seen.keys() - known),
        threshold=threshold,
        seconds=seconds,
        fidelity_bound=None if fidelity is None else fidelity.limit,
    )

"""The totals of a pair store, and the check that every input has exactly one row, ok or failed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gmd_ray.errors import BooksError
from gmd_ray.pairstore.schema import PAIR_SCHEMA, FidelityBound, accepted
from gmd_ray.text import some

_MEND = "`gmd-ray verify` names what is wrong with the store and how to mend it"


@dataclass(frozen=True)
class Totals:
    """Counts of inputs by their outcome."""

    inputs: int
    accepted: int
    rejected: int
    failed: int
    resumed: int
    """Inputs whose row was made by earlier runs."""
    removed_inputs: int
    """Rows in the store whose image is no longer among the inputs; in none of the counts above."""
    threshold: float
    seconds: float
    """Wall time of this run, in seconds."""
    fidelity_bound: float | None = None
    """The fidelity bound, on the scale of `scorer.fidelity`; None where there is none."""

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
        """The counts under the names of the manifest and the trackers: `removed_inputs` is `strangers` there."""
        counts = {**asdict(self), "ok": self.ok}
        counts["strangers"] = counts.pop("removed_inputs")
        return counts


def find_removed_inputs(rows: pa.Table, inputs: Collection[str]) -> list[str]:
    """List the ids of rows whose image is not among the inputs, sorted."""
    known = pa.array(sorted(set(inputs)), pa.string())
    return sorted(pc.unique(rows["id"].filter(pc.invert(pc.is_in(rows["id"], known)))).to_pylist())


def check_totals(
    rows: pa.Table,
    inputs: Collection[str],
    *,
    resumed: int,
    threshold: float,
    higher_is_better: bool,
    seconds: float,
    fidelity: FidelityBound | None = None,
) -> Totals:
    """Count the rows of a store against the inputs.

    Args:
        rows: columns id, status, score of the whole store, and fidelity where it is bounded.
        inputs: ids of the input folder.
        fidelity: the bound that accepted pairs have to meet.

    Raises:
        BooksError: naming inputs without a row, or with more than one, or rows that are neither ok nor failed.
    """
    known = pa.array(sorted(set(inputs)), pa.string())
    lost = known.filter(pc.invert(pc.is_in(known, rows["id"])))
    counts = pc.value_counts(rows["id"])
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    for what, ids in ((f"of {len(known)} inputs have no row", lost), ("ids have more than one row", twice)):
        if len(ids):
            raise BooksError(
                f"the rows do not match the inputs: {len(ids)} {what} ({some(sorted(ids.to_pylist()))}); {_MEND}"
            )
    names = ["status", "score"] + (["fidelity"] if fidelity else [])
    mine = rows.filter(pc.is_in(rows["id"], known)).select(names)
    failed, ok = (pc.sum(pc.equal(mine["status"], status)).as_py() or 0 for status in ("failed", "ok"))
    if ok + failed != len(known):
        raise BooksError(f"the rows do not match the inputs: {ok} ok + {failed} failed of {len(known)} inputs; {_MEND}")
    schema = pa.schema([PAIR_SCHEMA.field(name) for name in names])
    view = mine.cast(schema).filter(accepted(threshold, higher_is_better, fidelity=fidelity))
    return Totals(
        inputs=len(known),
        accepted=view.num_rows,
        rejected=ok - view.num_rows,
        failed=failed,
        resumed=resumed,
        removed_inputs=rows.num_rows - mine.num_rows,
        threshold=threshold,
        seconds=seconds,
        fidelity_bound=None if fidelity is None else fidelity.limit,
    )

"""Where to set the gate: how many pairs each threshold would admit; nothing is generated, no image is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gmd_ray.errors import DataError
from gmd_ray.pairstore import manifest, run_settings
from gmd_ray.pairstore.schema import FidelityBound, accepted, fidelity_bound, rows_dataset
from gmd_ray.pairstore.store import PairStore, arrow_errors_as_data_errors
from gmd_ray.text import printable

PAPER_THRESHOLD = 4.2
PAPER_PASS_RATES = (69.1, 74.0, 86.4, 84.3)
"""Per cent of the pseudo-targets that NIMA >= 4.2 admits, of the paper's four target sets (paper, Table 10;
restoration.md 7, which gives them in this order without naming the sets)."""
STEPS = 10
BAR = 50


@dataclass(frozen=True)
class GateView:
    """The scores of a store, and what a threshold makes of them."""

    url: str
    threshold: float
    higher_is_better: bool
    metric: str
    """`scorer.metric`, or `scorer.path` where a folder was used."""
    bound: FidelityBound | None
    close: np.ndarray
    """float32 scores of the ok rows that hold the fidelity bound; all of them, where there is none."""
    strayed: np.ndarray
    """Scores of the others."""

    @property
    def scores(self) -> np.ndarray:
        """Of every ok row, sorted."""
        return np.sort(np.concatenate([self.close, self.strayed]))

    def admitted(self, threshold: float) -> int:
        """Pairs that a threshold admits."""
        return int(self.passes(threshold).sum())

    def curve(self) -> list[tuple[float, int]]:
        """(threshold, admitted) over the range of the scores, the asked threshold among them, from lax to strict."""
        low, high = float(self.scores[0]), float(self.scores[-1])
        grid = {float(f"{value:.3g}") for value in np.linspace(low, high, STEPS + 1)} | {self.threshold}
        return [(value, self.admitted(value)) for value in sorted(grid, reverse=not self.higher_is_better)]

    def text(self) -> str:
        """The yield curve and a histogram for a terminal."""
        total, sign = len(self.scores), ">=" if self.higher_is_better else "<="
        second = f" and {self.bound}" if self.bound else ""
        lines = [f"{self.url}: {total:,} scored pairs ({self.metric}){second}", ""]
        lines.append(f"{'threshold':>12}  {'accepted':>9}  {'share':>7}")
        for value, count in self.curve():
            mark = "  <- asked" if value == self.threshold else ""
            lines.append(f"{f'{sign} {value:g}':>12}  {count:>9,}  {100 * count / total:>6.1f}%{mark}")
        rates = ", ".join(f"{rate:g}%" for rate in PAPER_PASS_RATES)
        lines += ["", f"paper, its four target sets at NIMA >= {PAPER_THRESHOLD:g}: {rates} (Table 10)"]
        if self.metric != "nima":
            lines.append(f"these scores are of {self.metric}: the paper's rates are on another scale")
        return "\n".join([*map(printable, lines), "", *self._histogram()])

    def passes(self, threshold: float) -> np.ndarray:
        """Which of `close` a threshold admits; in the scores' own float32, as `images.records.accepted`."""
        limit = np.float32(threshold)
        return self.close >= limit if self.higher_is_better else self.close <= limit

    def _histogram(self) -> list[str]:
        counts, edges = np.histogram(self.scores, bins=min(16, max(1, len(self.scores))))
        top = max(int(counts.max()), 1)
        return [
            f"{edge:>12.3g}  {'█' * round(BAR * int(count) / top)}{' ' if count else ''}{count:,}"
            for edge, count in zip(edges[:-1], counts, strict=True)
        ]


def read_gate(store: PairStore, threshold: float | None = None, limit: float | None = None) -> GateView:
    """The scores of a store, of all its whole part files; a run may be going on.

    Only ids and scores are read, filtered by status and, with `limit`, by fidelity in the Parquet scan.

    Args:
        threshold: in the scorer's own scale; None takes the one of the last finished run.
        limit: a fidelity bound; None asks for none.

    Raises:
        DataError: nothing scored yet, no threshold to take, or a bound on a fidelity that the store does not hold.
    """
    told, saved = store.read(manifest.MANIFEST_FILE) or {}, store.read(run_settings.SETTINGS_FILE) or {}
    if threshold is None:
        threshold = told.get("threshold")
    if threshold is None:
        raise DataError(f"{store.url}: no finished run says which threshold; give --threshold")
    higher = run_settings.higher_is_better(saved.get("models", {}))
    used = saved.get("settings", {})
    strangers = manifest.removed_input_ids(told, saved)
    bound = fidelity_bound(limit, None, run_settings.recorded_fidelity(used), store.url)
    rows = rows_dataset(store.path, store.filesystem)
    ok = pc.field("status") == "ok"
    if strangers:
        ok = ok & ~pc.field("id").isin(pa.array(strangers, pa.string()))
    lax = float("-inf") if higher else float("inf")
    view = accepted(lax, higher, strangers, bound)  # whatever the score, for the bound alone

    def scores(rule: pc.Expression) -> np.ndarray:
        with arrow_errors_as_data_errors(store.url):
            found = rows.to_table(columns=["id", "score"], filter=rule & pc.field("score").is_valid())
        if pc.count_distinct(found["id"]).as_py() < found.num_rows:  # after a crash; the next run repairs it
            found = found.group_by("id").aggregate([("score", "min")]).rename_columns({"score_min": "score"})
        return found["score"].to_numpy()

    close = scores(view)
    strayed = scores(ok & (pc.field("fidelity").is_null() | ~view)) if bound else close[:0]
    if not len(close) + len(strayed):
        raise DataError(f"{store.url}: no row has a score yet")
    path = saved.get("places", {}).get("scorer.path", {}).get("path")
    return GateView(
        url=store.url,
        threshold=float(threshold),
        higher_is_better=higher,
        metric=str(path or used.get("scorer.metric", "an unknown scorer")),
        bound=bound,
        close=close,
        strayed=strayed,
    )

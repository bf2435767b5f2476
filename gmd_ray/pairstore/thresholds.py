"""Number of pairs that each threshold of the gate would accept; nothing is generated and no image is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from gmd_ray.errors import DataError
from gmd_ray.pairstore.schema import FidelityBound
from gmd_ray.pairstore.store import PairStore
from gmd_ray.pairstore.view import StoreView
from gmd_ray.text import printable

PAPER_THRESHOLD = 4.2
PAPER_PASS_RATES = (69.1, 74.0, 86.4, 84.3)
"""Per cent of the pseudo-targets with NIMA >= 4.2, one figure for each of the paper's four target sets (Table 10; see
docs/method.md, "The gate")."""
GATE_CHECK_FILE = "gate_check.json"
"""Document of a store that says how the score ranked images of a known order (`generation.checks.gate`)."""
STEPS = 10
"""Steps of the yield curve."""
BAR = 50
"""Characters of the longest bar of the histogram."""


@dataclass(frozen=True)
class GateView:
    """The scores of a store, and how many of them a threshold accepts."""

    url: str
    threshold: float
    higher_is_better: bool
    metric: str
    """The name of the score: `scorer.metric`, or `scorer.path` where a folder was used."""
    bound: FidelityBound | None
    close: np.ndarray
    """float32 scores of the ok rows that hold the fidelity bound; of all ok rows where there is no bound."""
    strayed: np.ndarray
    """float32 scores of the other ok rows."""
    warnings: tuple[str, ...] = ()
    """Groups of images that the score does not put in their order, a line each."""

    @property
    def scores(self) -> np.ndarray:
        """float32 scores of every ok row, sorted."""
        return np.sort(np.concatenate([self.close, self.strayed]))

    def admitted(self, threshold: float) -> int:
        """Count the pairs that a threshold accepts."""
        return int(self.passes(threshold).sum())

    def curve(self) -> list[tuple[float, int]]:
        """(threshold, accepted pairs) from lax to strict over the range of the scores, the asked threshold included."""
        low, high = float(self.scores[0]), float(self.scores[-1])
        grid = {float(f"{value:.3g}") for value in np.linspace(low, high, STEPS + 1)} | {self.threshold}
        return [(value, self.admitted(value)) for value in sorted(grid, reverse=not self.higher_is_better)]

    def text(self) -> str:
        """Format the yield curve and a histogram for a terminal."""
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
        lines += [f"this gate cannot be trusted: {warning}" for warning in self.warnings]
        return "\n".join([*map(printable, lines), "", *self._histogram()])

    def as_json(self) -> dict[str, Any]:
        """The scores and the curve for programs."""
        return {
            "url": self.url,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "threshold": self.threshold,
            "fidelity": None if self.bound is None else {"metric": self.bound.metric, "limit": self.bound.limit},
            "scored": len(self.scores),
            "accepted": self.admitted(self.threshold),
            "curve": [{"threshold": threshold, "accepted": count} for threshold, count in self.curve()],
            "warnings": list(self.warnings),
        }

    def passes(self, threshold: float) -> np.ndarray:
        """Mark which of `close` a threshold accepts; compared in float32, as `schema.accepted` does."""
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
    """Read the scores of a store from all its part files; a run may be going on.

    Only ids and scores are read, filtered by status and, with `limit`, by fidelity inside the Parquet scan.

    Args:
        threshold: on the scorer's own scale; None takes the one of the last finished run.
        limit: a fidelity bound; None asks for none.

    Raises:
        DataError: nothing is scored yet, there is no threshold to take, or the bound is on a fidelity that the store
            does not hold.
    """
    view = StoreView.open(store, threshold, limit)

    def scores(rule: pc.Expression) -> np.ndarray:
        found = view.read(["id", "score"], rule & pc.field("score").is_valid())
        if pc.count_distinct(found["id"]).as_py() < found.num_rows:  # a crash left rows twice; the next run mends that
            found = found.group_by("id").aggregate([("score", "min")]).rename_columns({"score_min": "score"})
        return found["score"].to_numpy()

    close = scores(view.any_score)
    # `~` of a null is null, which a filter drops: rows without a fidelity are asked for by name.
    far = pc.field("fidelity").is_null() | ~view.any_score
    strayed = scores(view.with_status("ok") & far) if view.bound else close[:0]
    if not len(close) + len(strayed):
        raise DataError(f"{store.url}: no row has a score yet")
    metric = view.settings.path("scorer.path") or view.settings.settings.get("scorer.metric", "an unknown scorer")
    return GateView(
        url=store.url,
        threshold=float(view.threshold),
        higher_is_better=view.higher_is_better,
        metric=str(metric),
        bound=view.bound,
        close=close,
        strayed=strayed,
        warnings=read_gate_warnings(store),
    )


def read_gate_warnings(store: PairStore) -> tuple[str, ...]:
    """Read what the last run's check of the gate warned of, a line each; empty where there was no check.

    Raises:
        StorageError: the document cannot be read.
    """
    document = store.read(GATE_CHECK_FILE)
    checks = document.get("checks", []) if isinstance(document, dict) else []
    return tuple(check["warning"] for check in checks if isinstance(check, dict) and check.get("warning"))

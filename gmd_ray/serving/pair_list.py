"""The rows of a pair store as pages show them: state, score and reason of each pair, and its pictures one by one."""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from gmd_ray.config.secrets import redact
from gmd_ray.images.files.decode import decode_8bit
from gmd_ray.pairstore.schema import HIGHER_IS_CLOSER
from gmd_ray.pairstore.store import PART, PairStore, arrow_errors_as_data_errors
from gmd_ray.pairstore.view import StoreView

STATES = ("accepted", "rejected", "failed")
ORDERS = ("best", "worst", "name")
PICTURES = ("lq", "restored", "pseudo_target")
"""Columns with pictures."""
PER_PAGE = 24
HELD_S = 30.0
"""Seconds for which the list is taken as it was read: reading 100,000 rows takes seconds itself."""
THUMBNAIL = 360
"""Longest side of a thumbnail in pixels."""


@dataclass(frozen=True)
class PairRow:
    """One row of the store."""

    id: str
    state: str
    """One of `STATES`."""
    score: float | None
    reason: str
    """Why the pair is not accepted; empty where it is."""
    part: str
    """The part file that holds it."""


@dataclass(frozen=True)
class PairPage:
    """One page of a list of pairs."""

    rows: list[PairRow]
    number: int
    pages: int
    found: int
    """Pairs on all pages."""
    counts: dict[str, int]
    """State -> pairs, whatever the filter."""


class PairList:
    """The pairs of a store under one threshold, read anew every `HELD_S` seconds, as a run may be at work on it."""

    def __init__(self, store: PairStore, threshold: float | None = None, bound: float | None = None) -> None:
        """Look at the store.

        Args:
            store: the store.
            threshold: None takes that of the last finished run.
            bound: `scorer.fidelity_bound`; None for no second condition.

        Raises:
            DataError: there is no store, or no threshold to take.
        """
        self._store, self._threshold, self._bound = store, threshold, bound
        self.higher_is_better = StoreView.open(store, threshold, bound).higher_is_better
        self._lock = threading.Lock()
        self._held: dict[str, PairRow] = {}
        self._read_at = -math.inf

    def rows(self) -> dict[str, PairRow]:
        """Every pair whose photo is still an input, by id; of an id with several rows, the one that is not failed."""
        with self._lock:
            if time.monotonic() - self._read_at >= HELD_S:
                self._held = self._read()
                self._read_at = time.monotonic()
            return self._held

    def _read(self) -> dict[str, PairRow]:
        view = StoreView.open(self._store, self._threshold, self._bound)
        columns = ("id", "status", "score", "fidelity", "error_stage", "error_type", PART)
        table = PairStore(self._store.url).index().select(columns)
        accepted = set(view.ids())
        found: dict[str, PairRow] = {}
        for row in sorted(table.to_pylist(), key=lambda row: (row["id"], row["status"] == "ok")):
            found[row["id"]] = _row(row, view, row["id"] in accepted)
        for gone in view.removed_inputs:
            found.pop(gone, None)
        return found

    def page(self, state: str = "", order: str = "best", find: str = "", number: int = 1) -> PairPage:
        """One page of the pairs of a state.

        Args:
            state: one of `STATES`; anything else gives all.
            order: one of `ORDERS`; pairs without a score come last.
            find: text within the id, in any case.
            number: of the page, from 1; the last page where there are fewer.
        """
        everything = self.rows().values()
        counts = {name: sum(row.state == name for row in everything) for name in STATES}
        rows = [row for row in everything if state not in STATES or row.state == state]
        rows = [row for row in rows if find.casefold() in row.id.casefold()]
        if order != "name":
            sign = -1 if (order == "worst") != self.higher_is_better else 1
            rows.sort(key=lambda row: (row.score is None, sign * (row.score or 0)))
        pages = max(1, -(-len(rows) // PER_PAGE))
        number = min(max(number, 1), pages)
        return PairPage(rows[(number - 1) * PER_PAGE : number * PER_PAGE], number, pages, len(rows), counts)

    def find(self, pair: str) -> PairRow | None:
        """The row of an id; None if the store has none."""
        return self.rows().get(pair)

    def columns(self, row: PairRow, names: Iterable[str]) -> dict[str, Any]:
        """Columns of one row, read from its part file alone.

        Raises:
            DataError: the part file cannot be read.
        """
        with arrow_errors_as_data_errors(self._store.url):
            table = pq.read_table(
                row.part,
                columns=list(names),
                filters=pc.field("id") == pa.scalar(row.id),
                filesystem=self._store.filesystem,
                partitioning=None,
            )
        return table.to_pylist()[-1] if table.num_rows else {}


def thumbnail(png: bytes) -> bytes:
    """A JPEG of a picture, `THUMBNAIL` pixels on its longer side."""
    image = Image.fromarray(decode_8bit(png))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _row(row: dict[str, Any], view: StoreView, accepted: bool) -> PairRow:
    state = "failed" if row["status"] != "ok" else "accepted" if accepted else "rejected"
    return PairRow(row["id"], state, row["score"], redact(_reason(row, view, state)), row[PART])


def _reason(row: dict[str, Any], view: StoreView, state: str) -> str:
    if state == "accepted":
        return ""
    if state == "failed":
        return f"{row['error_stage']}: {row['error_type']}"
    if row["score"] is None:
        return "no score"
    side = "below" if view.higher_is_better else "above"
    short = row["score"] < view.threshold if view.higher_is_better else row["score"] > view.threshold
    if short or view.bound is None:
        return f"{side} {view.threshold:g}"
    closer = HIGHER_IS_CLOSER[view.bound.metric]
    return f"{view.bound.metric} {row['fidelity']:.4g}, {'below' if closer else 'above'} {view.bound.limit:g}"

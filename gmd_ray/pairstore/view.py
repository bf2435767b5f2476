"""The accepted pairs of a store: the one place that knows which rows they are.

A store records the direction of its score, the metric of its fidelity column and the inputs that were removed since
their rows were made in two documents: `manifest.json` of a finished run, and `settings.json`, which a run writes when
it begins. `StoreView` puts them together with a threshold and a fidelity bound; export, thresholds, reports, fine-tunes
and audits read the accepted pairs through it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from gmd_ray.errors import DataError
from gmd_ray.pairstore.manifest import Manifest, read_manifest
from gmd_ray.pairstore.run_settings import RunSettings, read_settings
from gmd_ray.pairstore.schema import FidelityBound, accepted, fidelity_bound, rows_dataset
from gmd_ray.pairstore.store import PairStore, arrow_errors_as_data_errors


@dataclass(frozen=True)
class StoreView:
    """A pair store under one threshold and, if asked for, one fidelity bound."""

    store: PairStore
    manifest: Manifest | None
    """The manifest of the last finished run; None while a run is going on, and after one that did not finish."""
    settings: RunSettings
    """The settings that the rows were made with; empty where the store has no `settings.json`."""
    threshold: float
    """The threshold on the scorer's own scale."""
    higher_is_better: bool
    """The direction of the score."""
    bound: FidelityBound | None
    """The second condition on accepted pairs; None where none was asked for."""
    removed_inputs: tuple[str, ...]
    """Ids of rows whose image has left the input folder; they are in no count."""
    _rows: ds.Dataset | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        store: PairStore | str,
        threshold: float | None = None,
        bound: float | None = None,
        *,
        fidelity: str | None = None,
        higher_is_better: bool | None = None,
    ) -> StoreView:
        """Read the documents of a store and list its part files; no row is read.

        A run may be going on. Stores of earlier versions may lack any of the recorded facts: a score whose direction
        nobody recorded is better when it is higher, and a store without a recorded fidelity has none.

        Args:
            store: the store, or the URL of the directory that holds `rows/`.
            threshold: None takes the threshold of the last finished run.
            bound: limit of the fidelity (`scorer.fidelity_bound`); None asks for no second condition.
            fidelity: the metric that `bound` is meant for (`scorer.fidelity`); None takes the one that the store holds.
            higher_is_better: None takes the recorded direction.

        Raises:
            DataError: no part files, a document that cannot be read, no threshold to take, or a bound on a fidelity
                that the store does not hold.
        """
        if isinstance(store, str):
            store = PairStore(store)
        manifest, settings = read_manifest(store), read_settings(store)
        if threshold is None:
            threshold = None if manifest is None else manifest.threshold
        if threshold is None:
            raise DataError(f"{store.url}: no finished run says which threshold; give --threshold")
        rows = rows_dataset(store.path, store.filesystem)
        view = cls.of_documents(store, manifest, settings, threshold, bound, fidelity=fidelity)
        if higher_is_better is None:
            higher_is_better = view.higher_is_better
        return replace(view, higher_is_better=higher_is_better, _rows=rows)

    @classmethod
    def of_documents(
        cls,
        store: PairStore,
        manifest: Manifest | None,
        settings: RunSettings,
        threshold: float,
        bound: float | None = None,
        *,
        fidelity: str | None = None,
    ) -> StoreView:
        """Make a view that knows the accepted pairs but holds no rows, from documents that were read before.

        Where the two documents disagree the manifest counts: it is the newer one, written when a run ends and deleted
        before rows change.

        Args:
            threshold, bound, fidelity: see `open`.

        Raises:
            DataError: a bound on a fidelity that the store does not hold.
        """
        finished = manifest or Manifest()
        higher, recorded = finished.higher_is_better, finished.fidelity
        return cls(
            store=store,
            manifest=manifest,
            settings=settings,
            threshold=threshold,
            higher_is_better=settings.higher_is_better if higher is None else higher,
            bound=fidelity_bound(bound, fidelity, recorded or settings.fidelity, store.url),
            removed_inputs=removed_inputs(manifest, settings),
        )

    @property
    def url(self) -> str:
        """The URL of the store."""
        return self.store.url

    @property
    def rows(self) -> ds.Dataset:
        """All rows of the store, as a lazy dataset of `PAIR_SCHEMA`."""
        assert self._rows is not None, "a view made by of_documents holds no rows"
        return self._rows

    @property
    def expression(self) -> pc.Expression:
        """The filter over `rows` that leaves the accepted pairs."""
        return accepted(self.threshold, self.higher_is_better, self.removed_inputs, self.bound)

    @property
    def any_score(self) -> pc.Expression:
        """The filter that leaves the pairs which hold the fidelity bound, whatever their score."""
        lax = float("-inf") if self.higher_is_better else float("inf")
        return accepted(lax, self.higher_is_better, self.removed_inputs, self.bound)

    def with_status(self, status: str) -> pc.Expression:
        """The filter that leaves the rows of this status (`ok` or `failed`) whose image is still an input."""
        rule = pc.field("status") == status
        removed = pa.array(self.removed_inputs, pa.string())
        return rule & ~pc.field("id").isin(removed) if self.removed_inputs else rule

    def read(self, columns: Sequence[str], rule: pc.Expression | None = None) -> pa.Table:
        """Read columns of the rows that a filter leaves, by default of the accepted pairs.

        Raises:
            DataError: a part file cannot be read.
        """
        with arrow_errors_as_data_errors(self.url):
            return self.rows.to_table(columns=list(columns), filter=self.expression if rule is None else rule)

    def ids(self) -> list[str]:
        """Ids of the accepted pairs, in the order of the part files; an id comes twice after some crashes."""
        return list(self.read(["id"])["id"].to_pylist())

    def scores(self) -> list[tuple[str, float]]:
        """(id, score) of every scored row whose image is still an input, accepted or not; best first, then by id."""
        table = self.read(["id", "score"], self.with_status("ok") & pc.field("score").is_valid())
        scores = zip(table["id"].to_pylist(), table["score"].to_pylist(), strict=True)
        return sorted(scores, key=lambda pair: (-pair[1] if self.higher_is_better else pair[1], pair[0]))

    def rows_of(self, ids: Collection[str], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Columns of some rows, by id; the column `id` is always among them."""
        rule = pc.field("id").isin(pa.array(ids, pa.string()))
        return {row["id"]: row for row in self.read(["id", *columns], rule).to_pylist()}


def removed_inputs(manifest: Manifest | None, settings: RunSettings) -> tuple[str, ...]:
    """Ids of rows whose image has left the inputs: by the manifest, or by the settings while a run is going on."""
    return settings.removed_inputs if manifest is None else manifest.removed_inputs

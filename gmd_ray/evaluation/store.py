"""The pair store as the report shows it: counts, scores, failures, and a few pairs to look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gmd_ray.config import Config
from gmd_ray.evaluation.items import Item, spread
from gmd_ray.pairstore.manifest import Manifest, read_manifest
from gmd_ray.pairstore.schema import FidelityBound
from gmd_ray.pairstore.store import PairStore, store_url
from gmd_ray.pairstore.thresholds import read_gate_warnings
from gmd_ray.pairstore.view import StoreView

FAILED_SHOWN = 50


@dataclass(frozen=True)
class StoreSummary:
    """The pair store under a run directory, as the report shows it."""

    view: StoreView
    manifest: Manifest
    scores: list[tuple[str, float]]
    """(id, score) of every `ok` row, best first."""
    failed: list[dict[str, str]]
    """The first `FAILED_SHOWN` failed rows by id: id, uri, error_stage, error_type, error."""
    failed_count: int
    _accepted: frozenset[str] = field(repr=False)

    @property
    def threshold(self) -> float:
        """The threshold that pairs are held against: `scorer.threshold`."""
        return self.view.threshold

    @property
    def higher_is_better(self) -> bool:
        """The direction of the score."""
        return self.view.higher_is_better

    @property
    def fidelity(self) -> FidelityBound | None:
        """The bound on the pairs' fidelity; None where none was asked for."""
        return self.view.bound

    @property
    def accepted(self) -> list[tuple[str, float]]:
        """(id, score) of accepted pairs, best first."""
        return [pair for pair in self.scores if pair[0] in self._accepted]

    @property
    def rejected(self) -> list[tuple[str, float]]:
        """(id, score) of the other pairs, best first."""
        return [pair for pair in self.scores if pair[0] not in self._accepted]

    @property
    def gate_warnings(self) -> tuple[str, ...]:
        """The warnings of the last run's check of the gate, a line each."""
        return read_gate_warnings(self.view.store)

    @property
    def inputs(self) -> int:
        """The number of inputs that have a row."""
        return len(self.scores) + self.failed_count

    def images(self, ids: list[str]) -> dict[str, dict[str, Any]]:
        """Rows of some pairs by id: `lq`, `restored`, `pseudo_target` (PNG bytes or None) and `score`."""
        return self.view.rows_of(ids, ["lq", "restored", "pseudo_target", "score"])


def open_store(cfg: Config) -> StoreSummary | None:
    """Read the pair store under `cfg.out`; None where no run has finished (the manifest is written last)."""
    store = PairStore(store_url(cfg.out))
    manifest = read_manifest(store)
    if manifest is None:
        return None
    view = StoreView.open(store, cfg.scorer.threshold, cfg.scorer.fidelity_bound, fidelity=cfg.scorer.fidelity)
    columns = ["id", "uri", "error_stage", "error_type", "error"]
    failed = view.read(columns, view.with_status("failed")).sort_by("id")
    return StoreSummary(
        view=view,
        manifest=manifest,
        scores=view.scores(),
        failed=failed.slice(0, FAILED_SHOWN).to_pylist(),
        failed_count=len(failed),
        _accepted=frozenset(view.ids()),
    )


def borderline_pairs(store: StoreSummary, n: int) -> list[str]:
    """The ids of the pairs whose scores are nearest to the threshold: at most n, and at most a third of the store."""
    nearest = sorted(store.scores, key=lambda pair: (abs(pair[1] - store.threshold), pair[0]))
    return [image for image, _ in nearest[: min(n, len(nearest) // 3)]]


def shown_pairs(store: StoreSummary, n: int) -> list[str]:
    """Choose at most n accepted, n rejected and n borderline pairs; returns their ids, each once.

    Accepted and rejected ones are spread evenly over the scores.
    """
    spread_ids = [image for image, _ in [*spread(store.accepted, n), *spread(store.rejected, n)]]
    return list(dict.fromkeys([*spread_ids, *borderline_pairs(store, n)]))


def pair_items(store: StoreSummary, n: int) -> list[Item]:
    """Make the items for the adapted student to restore: the pairs that the report shows."""
    ids = shown_pairs(store, n)
    rows = store.images(ids)
    return [
        {"dataset": "pairs", "id": image, "lq": "", "hq": "", "data": rows[image]["lq"], "picture": True}
        for image in ids
    ]

"""What the report wants to know of the pair store: counts, scores, failures, and a few pairs to look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gmd_ray.config import Config
from gmd_ray.evaluation.items import Item, spread
from gmd_ray.pairstore import run_settings
from gmd_ray.pairstore import store as generation_store
from gmd_ray.pairstore.schema import FidelityBound, accepted, fidelity_bound, rows_dataset
from gmd_ray.pairstore.store import store_url

FAILED_SHOWN = 50


@dataclass(frozen=True)
class PairStore:
    """The pair store under a run directory, as the report sees it."""

    threshold: float
    higher_is_better: bool
    manifest: dict[str, Any]
    scores: list[tuple[str, float]]
    """(id, score) of every `ok` row, best first."""
    failed: list[dict[str, str]]
    """The first `FAILED_SHOWN` failed rows by id: id, uri, error_stage, error_type, error."""
    failed_count: int
    fidelity: FidelityBound | None
    """The second opinion asked for."""
    _accepted: frozenset[str] = field(repr=False)
    _data: Any = field(repr=False)

    @property
    def accepted(self) -> list[tuple[str, float]]:
        """(id, score) of pairs in the accepted view, best first."""
        return [pair for pair in self.scores if pair[0] in self._accepted]

    @property
    def rejected(self) -> list[tuple[str, float]]:
        """(id, score) of the others, best first."""
        return [pair for pair in self.scores if pair[0] not in self._accepted]

    @property
    def inputs(self) -> int:
        return len(self.scores) + self.failed_count

    def images(self, ids: list[str]) -> dict[str, dict[str, Any]]:
        """Rows of some pairs by id: `lq`, `restored`, `pseudo_target` (PNG or None) and `score`."""
        columns = ["id", "lq", "restored", "pseudo_target", "score"]
        rows = self._data.to_table(columns=columns, filter=pc.field("id").isin(pa.array(ids, pa.string()))).to_pylist()
        return {row["id"]: row for row in rows}


def open_store(cfg: Config) -> PairStore | None:
    """The pair store under `cfg.out`, or None where none was finished (the manifest is written last)."""
    url = store_url(cfg.out)
    manifest = generation_store.PairStore(url).read("manifest.json")
    if manifest is None:
        return None
    rows = rows_dataset(url)
    higher = bool(manifest.get("higher_is_better", True))
    # Rows of images that have left the inputs are in no count.
    strangers = manifest.get("stranger_ids", [])
    inputs = ~pc.field("id").isin(pa.array(strangers, pa.string()))
    recorded = run_settings.recorded_fidelity(manifest.get("settings", {}))
    bound = fidelity_bound(cfg.scorer.fidelity_bound, cfg.scorer.fidelity, recorded, url)
    view = accepted(cfg.scorer.threshold, higher, strangers, bound)
    ok = rows.to_table(columns=["id", "score"], filter=inputs & (pc.field("status") == "ok"))
    scores = list(zip(ok["id"].to_pylist(), ok["score"].to_pylist(), strict=True))
    scores.sort(key=lambda pair: (-pair[1] if higher else pair[1], pair[0]))
    columns = ["id", "uri", "error_stage", "error_type", "error"]
    failed = rows.to_table(columns=columns, filter=inputs & (pc.field("status") == "failed")).sort_by("id")
    return PairStore(
        threshold=cfg.scorer.threshold,
        higher_is_better=higher,
        manifest=manifest,
        scores=scores,
        failed=failed.slice(0, FAILED_SHOWN).to_pylist(),
        failed_count=len(failed),
        fidelity=bound,
        _accepted=frozenset(rows.to_table(columns=["id"], filter=view)["id"].to_pylist()),
        _data=rows,
    )


def shown_pairs(store: PairStore, n: int) -> list[str]:
    """Ids of at most n accepted and n rejected pairs, evenly over the scores."""
    return [image for image, _ in [*spread(store.accepted, n), *spread(store.rejected, n)]]


def pair_items(store: PairStore, n: int) -> list[Item]:
    """The pairs that the report shows, for the adapted student to restore."""
    ids = shown_pairs(store, n)
    rows = store.images(ids)
    return [
        {"dataset": "pairs", "id": image, "lq": "", "hq": "", "data": rows[image]["lq"], "picture": True}
        for image in ids
    ]

"""The accepted pairs that a fine-tune learns from, selected by the driver."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gmd_ray.config import Config
from gmd_ray.config.validate import check_controls
from gmd_ray.errors import DataError
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.pairstore.manifest import read_manifest
from gmd_ray.pairstore.schema import FidelityBound
from gmd_ray.pairstore.store import PairStore, store_url
from gmd_ray.pairstore.view import StoreView
from gmd_ray.training.digests import digest


@dataclass(frozen=True)
class AcceptedPairs:
    """The accepted pairs of a store at the time when the driver read it."""

    store_url: str
    threshold: float
    higher_is_better: bool
    median: bool
    """If True, the target is the median-filtered `restored` instead of the pseudo-target."""
    removed_inputs: tuple[str, ...]
    """Ids of images that are no longer among the store's inputs; their rows are left out."""
    ids: tuple[str, ...]
    """Ids of the pairs, sorted; `Draw.index` is a position in this tuple."""
    digest: str
    """Digest of ids, scores, the fingerprints of the models that made the rows, and the digests of the photos."""
    fidelity: FidelityBound | None = None
    """The bound on fidelity that pairs have to meet; None if there is none."""
    truths: tuple[str, ...] = ()
    """URIs of the ground truth of each id, which the control `supervised` takes as targets; else empty."""


def accepted_pairs(cfg: Config, name: str, inputs: RunInputs | None = None) -> AcceptedPairs:
    """Select the accepted pairs of `<out>/pairs` for a fine-tune.

    Args:
        cfg: the settings; `scorer.threshold` and `scorer.fidelity_bound` decide.
        name: see `finetune`.
        inputs: see `finetune`.

    Raises:
        ConfigError: a setting that this fine-tune needs is missing.
        DataError: no finished pair store, no accepted pairs, or photos without ground truth for `supervised`.
    """
    median = name == "median"
    store = PairStore(store_url(cfg.out))
    if read_manifest(store) is None:
        raise DataError(f"{store.url}: no finished pair store here (manifest.json is written last); run generate")
    check_controls(cfg, [name])
    pairs = StoreView.open(store, cfg.scorer.threshold, cfg.scorer.fidelity_bound, fidelity=cfg.scorer.fidelity)
    higher, bound = pairs.higher_is_better, pairs.bound
    view = pairs.read(["id", "score", "teacher", "student", "scorer", "digest"]).sort_by("id").to_pylist()
    if not view:
        everything = pairs.rows.to_table(columns=["score"])["score"].to_pylist()
        scores = [score for score in everything if score is not None]
        best = (
            f"the best of {len(scores)} scores is {(max if higher else min)(scores):.4g}"
            if scores
            else "none has a score"
        )
        rule = f"threshold {pairs.threshold:g}{f' and {bound}' if bound else ''}"
        raise DataError(
            f"{store.url}: no accepted pairs at {rule} ({best}); "
            f"{'lower' if higher else 'raise'} scorer.threshold{' or loosen scorer.fidelity_bound' if bound else ''}"
        )
    ids = tuple(row["id"] for row in view)
    content = digest(json.dumps(_without_absent_digest(row), sort_keys=True) for row in view)
    truths: tuple[str, ...] = ()
    if name == "supervised":
        inputs = inputs or RunInputs()
        truths = tuple(inputs.truths(str(cfg.training.supervised_hq), ids, "training.supervised_hq"))
    return AcceptedPairs(store.url, pairs.threshold, higher, median, pairs.removed_inputs, ids, content, bound, truths)


def _without_absent_digest(row: dict[str, Any]) -> dict[str, Any]:
    """Leave the key `digest` out where it is null.

    Stores of earlier versions have no such column, and the digest of their fine-tunes was made without it.
    """
    return row if row["digest"] is not None else {key: value for key, value in row.items() if key != "digest"}

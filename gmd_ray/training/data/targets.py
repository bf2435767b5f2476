"""The accepted pairs that a fine-tune learns from, selected by the driver."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gmd_ray.config import Config
from gmd_ray.errors import ConfigError, DataError
from gmd_ray.images.listing import read_file
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.pairstore.schema import FidelityBound, accepted, fidelity_bound, rows_dataset
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
    url = os.path.join(os.path.abspath(cfg.out), "pairs")
    try:
        manifest = json.loads(read_file(f"{url}/manifest.json"))
    except DataError as error:
        raise DataError(f"{url}: no finished pair store here (manifest.json is written last); run generate") from error
    except ValueError as error:
        raise DataError(f"{url}/manifest.json: damaged ({error}); run generate again") from error
    if median and not cfg.generation.keep_restored:
        raise ConfigError("the median control filters the `restored` images: set generation.keep_restored=true")
    higher = bool(manifest.get("higher_is_better", True))
    threshold = cfg.scorer.threshold
    columns = ["id", "score", "teacher", "student", "scorer", "digest"]
    rows = rows_dataset(url)
    removed_inputs = tuple(manifest.get("stranger_ids", ()))
    recorded = str(manifest.get("settings", {}).get("scorer.fidelity", "none"))
    bound = fidelity_bound(cfg.scorer.fidelity_bound, cfg.scorer.fidelity, recorded, url)
    is_accepted = accepted(threshold, higher, removed_inputs, bound)
    view = rows.to_table(columns=columns, filter=is_accepted).sort_by("id").to_pylist()
    if not view:
        scores = [score for score in rows.to_table(columns=["score"])["score"].to_pylist() if score is not None]
        best = (
            f"the best of {len(scores)} scores is {(max if higher else min)(scores):.4g}"
            if scores
            else "none has a score"
        )
        raise DataError(
            f"{url}: no accepted pairs at threshold {threshold:g}{f' and {bound}' if bound else ''} ({best}); "
            f"{'lower' if higher else 'raise'} scorer.threshold{' or loosen scorer.fidelity_bound' if bound else ''}"
        )
    ids = tuple(row["id"] for row in view)
    content = digest(json.dumps(_digested(row), sort_keys=True) for row in view)
    truths = _truths(inputs or RunInputs(), cfg.training.supervised_hq, ids) if name == "supervised" else ()
    return AcceptedPairs(url, threshold, higher, median, removed_inputs, ids, content, bound, truths)


def _digested(row: dict[str, Any]) -> dict[str, Any]:
    """The row for the digest of `AcceptedPairs`.

    Older stores have no digests of photos, and fine-tunes begun on them computed theirs without that column.
    """
    return row if row["digest"] is not None else {key: value for key, value in row.items() if key != "digest"}


def _truths(inputs: RunInputs, folder: str | None, ids: Sequence[str]) -> tuple[str, ...]:
    if folder is None:
        raise ConfigError("the supervised control needs the target's ground truth: set training.supervised_hq")
    return tuple(inputs.truths(folder, ids, "training.supervised_hq"))

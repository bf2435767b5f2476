"""The accepted pairs that a fine-tune learns from, found out by the driver."""

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
    """The accepted view of a pair store, as the driver saw it."""

    store_url: str
    threshold: float
    higher_is_better: bool
    median: bool
    """Take the median-filtered `restored` for the target, not the pseudo-target."""
    strangers: tuple[str, ...]
    """Rows of images that are no longer among the store's inputs: left out."""
    ids: tuple[str, ...]
    """Sorted; the order that `Draw.index` counts in."""
    digest: str
    """Of ids, scores, the fingerprints of the models that made the rows, and the digests of the photos."""
    fidelity: FidelityBound | None = None
    """The second opinion asked for."""
    truths: tuple[str, ...] = ()
    """URIs of ground truth that is taken for the target instead, one for each id; empty but for `supervised`."""


def accepted_pairs(cfg: Config, name: str, inputs: RunInputs | None = None) -> AcceptedPairs:
    """The accepted pairs of `<out>/pairs` as the fine-tune of this name takes them.

    Raises:
        ConfigError: settings that cannot be met.
        DataError: no finished pair store, no accepted pairs, or photos without the ground truth that is asked for.
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
    strangers = tuple(manifest.get("stranger_ids", ()))
    recorded = str(manifest.get("settings", {}).get("scorer.fidelity", "none"))
    bound = fidelity_bound(cfg.scorer.fidelity_bound, cfg.scorer.fidelity, recorded, url)
    gate = accepted(threshold, higher, strangers, bound)
    view = rows.to_table(columns=columns, filter=gate).sort_by("id").to_pylist()
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
    found = digest(json.dumps(_told(row), sort_keys=True) for row in view)
    truths = _truths(inputs or RunInputs(), cfg.training.supervised_hq, ids) if name == "supervised" else ()
    return AcceptedPairs(url, threshold, higher, median, strangers, ids, found, bound, truths)


def _told(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the digest of its photo where a store is older than that: its fine-tunes are, too."""
    return row if row["digest"] is not None else {key: value for key, value in row.items() if key != "digest"}


def _truths(inputs: RunInputs, folder: str | None, ids: Sequence[str]) -> tuple[str, ...]:
    if folder is None:
        raise ConfigError("the supervised control needs the target's ground truth: set training.supervised_hq")
    return tuple(inputs.truths(folder, ids, "training.supervised_hq"))

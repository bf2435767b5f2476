"""What is said of a finished store, written last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import gmd_ray
from gmd_ray.config import Config
from gmd_ray.pairstore import cost, run_settings
from gmd_ray.pairstore.history import images_per_second, read_runs, wall_seconds
from gmd_ray.pairstore.run_settings import Facts, higher_is_better
from gmd_ray.pairstore.store import PairStore
from gmd_ray.pairstore.totals import Totals, find_removed_inputs

MANIFEST_FILE = "manifest.json"
LIBRARIES = ("ray", "torch", "diffusers", "spandrel", "pyarrow")
STAGES = ("restore", "project", "score")


def removed_input_ids(told: Mapping[str, Any] | None, saved: Mapping[str, Any] | None) -> list[str]:
    """Ids of rows whose image is no longer an input, by manifest.json, or settings.json while a run goes on."""
    return list((told or (saved or {}).get("inputs", {})).get("stranger_ids", ()))


def make_manifest(
    cfg: Config, store: PairStore, totals: Totals, facts: Facts, rows: pa.Table, inputs: Collection[str]
) -> dict[str, Any]:
    """Counts, settings, models, versions and timings.

    Args:
        inputs: ids of the input folder.
        rows: the index of the whole store.
    """
    used = run_settings.relevant(cfg)
    seconds = {stage: pc.sum(rows[f"seconds_{stage}"]).as_py() or 0.0 for stage in STAGES}
    runs = read_runs(store)
    failed = rows.filter(pc.field("status") == "failed").select(["error_stage", "error_type"]).to_pylist()
    return {
        **totals.counts(),
        # Rows of images that have left the inputs: in no count, and not in the accepted view.
        "stranger_ids": find_removed_inputs(rows, inputs),
        "higher_is_better": higher_is_better(facts),
        "failures": dict(Counter(f"{row['error_stage']}: {row['error_type']}" for row in failed)),
        "models": facts,
        "settings": used,
        "settings_fingerprint": run_settings.fingerprint(used),
        "versions": {"gmd_ray": gmd_ray.__version__, **{name: version(name) for name in LIBRARIES}},
        "images_this_run": totals.inputs - totals.resumed,
        # Of the last run that had images to work off; one that finds all done does not wipe it out.
        "images_per_second": images_per_second(runs),
        # Of all rows, earlier runs included; time inside the models and their coding, summed over workers.
        "seconds_by_stage": seconds,
        "cost": cost.predicted_and_actual(
            cfg,
            store.read(cost.PLAN_FILE),
            ok=totals.ok,
            seconds=seconds,
            wall=wall_seconds(runs),
            disk=store.size(),
        ),
    }

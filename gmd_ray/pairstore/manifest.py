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
from gmd_ray.pairstore import cost as spent
from gmd_ray.pairstore import run_settings as settings
from gmd_ray.pairstore.history import images_per_second, read_runs, wall_seconds
from gmd_ray.pairstore.run_settings import Facts, higher_is_better
from gmd_ray.pairstore.store import PairStore
from gmd_ray.pairstore.totals import Books, stranger_ids

NAME = "manifest.json"
LIBRARIES = ("ray", "torch", "diffusers", "spandrel", "pyarrow")
STAGES = ("restore", "project", "score")


def told_strangers(told: Mapping[str, Any] | None, saved: Mapping[str, Any] | None) -> list[str]:
    """Ids of rows whose image is no longer an input, by manifest.json, or settings.json while a run goes on."""
    return list((told or (saved or {}).get("inputs", {})).get("stranger_ids", ()))


def make_manifest(
    cfg: Config, store: PairStore, books: Books, facts: Facts, rows: pa.Table, inputs: Collection[str]
) -> dict[str, Any]:
    """Counts, settings, models, versions and timings.

    Args:
        inputs: ids of the input folder.
        rows: the index of the whole store.
    """
    used = settings.relevant(cfg)
    seconds = {stage: pc.sum(rows[f"seconds_{stage}"]).as_py() or 0.0 for stage in STAGES}
    runs = read_runs(store)
    failed = rows.filter(pc.field("status") == "failed").select(["error_stage", "error_type"]).to_pylist()
    return {
        **books.counts(),
        # Rows of images that have left the inputs: in no count, and not in the accepted view.
        "stranger_ids": stranger_ids(rows, inputs),
        "higher_is_better": higher_is_better(facts),
        "failures": dict(Counter(f"{row['error_stage']}: {row['error_type']}" for row in failed)),
        "models": facts,
        "settings": used,
        "settings_fingerprint": settings.fingerprint(used),
        "versions": {"gmd_ray": gmd_ray.__version__, **{name: version(name) for name in LIBRARIES}},
        "images_this_run": books.inputs - books.resumed,
        # Of the last run that had images to work off; one that finds all done does not wipe it out.
        "images_per_second": images_per_second(runs),
        # Of all rows, earlier runs included; time inside the models and their coding, summed over workers.
        "seconds_by_stage": seconds,
        "cost": spent.predicted_and_actual(
            cfg,
            store.read(spent.NAME),
            ok=books.ok,
            seconds=seconds,
            wall=wall_seconds(runs),
            disk=store.size(),
        ),
    }

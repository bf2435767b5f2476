"""`manifest.json`: counts, models, settings and timings of a finished store. It is written last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import gmd_ray
from gmd_ray.config import Config
from gmd_ray.errors import DataError
from gmd_ray.pairstore import cost, run_settings
from gmd_ray.pairstore.history import images_per_second, read_runs, step_cache_counts, wall_seconds
from gmd_ray.pairstore.run_settings import Facts, higher_is_better
from gmd_ray.pairstore.store import PairStore
from gmd_ray.pairstore.totals import Totals, find_removed_inputs

MANIFEST_FILE = "manifest.json"
LIBRARIES = ("ray", "torch", "diffusers", "spandrel", "pyarrow")
STAGES = ("restore", "project", "score")


@dataclass(frozen=True)
class Manifest:
    """The manifest of a finished run.

    Manifests of earlier versions lack some keys; a property is None, or empty, where its key is missing.
    """

    document: Mapping[str, Any] = field(default_factory=dict)
    """The JSON object of the file, with every key that the version which wrote it had."""

    @classmethod
    def from_json(cls, document: Any, where: str) -> Manifest:
        """Take a parsed JSON document.

        Args:
            where: the file's URL, for the error.

        Raises:
            DataError: the document is no JSON object.
        """
        if not isinstance(document, dict):
            raise DataError(f"{where}: not a manifest of this program (no JSON object); run generate again")
        return cls(document)

    def to_json(self) -> dict[str, Any]:
        """The document as it is stored, keys that this version does not know included."""
        return dict(self.document)

    @property
    def inputs(self) -> int | None:
        """The number of input images."""
        return self.document.get("inputs")

    @property
    def threshold(self) -> float | None:
        """The threshold that the accepted pairs were counted with."""
        return self.document.get("threshold")

    @property
    def fidelity_bound(self) -> float | None:
        """The fidelity bound that the accepted pairs were counted with; None where there was none."""
        return self.document.get("fidelity_bound")

    @property
    def higher_is_better(self) -> bool | None:
        """The direction of the score."""
        found = self.document.get("higher_is_better")
        return None if found is None else bool(found)

    @property
    def removed_inputs(self) -> tuple[str, ...]:
        """Ids of rows whose image was no longer among the inputs (key `stranger_ids`)."""
        return tuple(self.document.get("stranger_ids", ()))

    @property
    def fidelity(self) -> str | None:
        """The metric in column `fidelity`, `none` where the column is empty; None where no settings are recorded."""
        settings = self.document.get("settings")
        return None if settings is None else run_settings.recorded_fidelity(settings)

    @property
    def images_per_second(self) -> float | None:
        """The rate of the last run that made rows."""
        return self.document.get("images_per_second")

    @property
    def seconds(self) -> float | None:
        """Wall time of the run, in seconds."""
        return self.document.get("seconds")

    @property
    def cost(self) -> Mapping[str, Any]:
        """Planned and actual cost of the store (`cost.predicted_and_actual`)."""
        return self.document.get("cost") or {}


def read_manifest(store: PairStore) -> Manifest | None:
    """Read the manifest of a store; None where no run has finished.

    Raises:
        DataError: the file is no manifest.
        StorageError: the file cannot be read.
    """
    document = store.read(MANIFEST_FILE)
    return None if document is None else Manifest.from_json(document, f"{store.url}/{MANIFEST_FILE}")


def make_manifest(
    cfg: Config, store: PairStore, totals: Totals, facts: Facts, rows: pa.Table, inputs: Collection[str]
) -> dict[str, Any]:
    """Put together the manifest's JSON document: counts, settings, models, versions and timings.

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
        # Rows of images that have left the inputs are in no count, and not among the accepted pairs.
        "stranger_ids": find_removed_inputs(rows, inputs),
        "higher_is_better": higher_is_better(facts),
        "failures": dict(Counter(f"{row['error_stage']}: {row['error_type']}" for row in failed)),
        "models": facts,
        "settings": used,
        "settings_fingerprint": run_settings.fingerprint(used),
        "versions": {"gmd_ray": gmd_ray.__version__, **{name: version(name) for name in LIBRARIES}},
        "images_this_run": totals.inputs - totals.resumed,
        # The rate of the last run that made rows: a run that finds every row done does not overwrite it.
        "images_per_second": images_per_second(runs),
        # Time inside the models and in coding their images, summed over workers and over all rows of all runs.
        "seconds_by_stage": seconds,
        "step_cache": step_cache_counts(runs),
        "cost": cost.predicted_and_actual(
            cfg,
            store.read(cost.PLAN_FILE),
            ok=totals.ok,
            seconds=seconds,
            wall=wall_seconds(runs),
            disk=store.size(),
        ),
    }

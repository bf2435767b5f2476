"""`preview`: some target photos through Stages 0 to 1b in this process, what all would cost, and a page of it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from gmd_ray.config import Config
from gmd_ray.generation import Models, generate
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.pairstore.schema import rows_dataset
from gmd_ray.pairstore.store import PairStore, store_url
from gmd_ray.pairstore.thresholds import GateView, read_gate
from gmd_ray.pairstore.view import StoreView
from gmd_ray.planning.plan import Plan, make_plan, survey
from gmd_ray.planning.probe import Probe, copy_photos, measure, pick, probe_settings
from gmd_ray.preview.grid import GridPoint
from gmd_ray.preview.sweep import Sweep, run_sweep
from gmd_ray.quality import load_scorer
from gmd_ray.students import load_student

log = logging.getLogger("gmd_ray")

S = TypeVar("S")
T = TypeVar("T")

Row = dict[str, Any]
"""A row of the pair store (`PAIR_SCHEMA`)."""


@dataclass(frozen=True)
class Preview:
    """The outcome of a preview."""

    cfg: Config
    rows: list[Row]
    """A row for each photo that was taken, by id; failed ones among them."""
    accepted: frozenset[str]
    """Ids of the photos whose pair the gate accepts."""
    gate: GateView
    """The scores of these photos."""
    probe: Probe
    plan: Plan
    """The predicted cost of all photos at the speed of this machine."""
    sweep: Sweep | None


def preview(
    cfg: Config,
    count: int,
    grid: Sequence[GridPoint] = (),
    *,
    inputs: RunInputs | None = None,
    models: Models | None = None,
) -> Preview:
    """Take some target photos through the real stages, and predict what all of them will take.

    The stages run in this process without Ray, one replica of each, in a temporary folder; the run directory stays as
    it is. Photos are spread evenly over their costs.

    Args:
        cfg: the settings, as for `generate`.
        count: number of photos, and of source pairs for the grid.
        grid: settings of the teacher to compare on these photos and, where `source.hq` is set, on source pairs.
        inputs: folder listings that the run shares.
        models: loaders of the three models. By default the student and the scorer are loaded once for all settings.

    Raises:
        DataError: no image came through.
        GmdError: as `generate`.
    """
    inputs = inputs or RunInputs()
    models = models or Models(student=loaded_once(load_student), scorer=loaded_once(load_scorer))
    cfg = replace(cfg, ray=replace(cfg.ray, enabled=False))
    jobs, unreadable = survey(cfg, inputs)
    picked = pick(jobs, count)
    with tempfile.TemporaryDirectory(prefix="gmd-preview-") as folder:
        place = Path(folder)
        copy_photos(picked, place / "photos")
        log.info("preview: %d of %d photos through the real stages", len(picked), len(jobs))
        small = probe_settings(cfg, place)
        small = replace(small, generation=replace(small.generation, keep_restored=True))
        generate(small, models=models)
        probe = measure(small, picked)
        rows = read_rows(small)
        store, limits = PairStore(store_url(small.out)), (cfg.scorer.threshold, cfg.scorer.fidelity_bound)
        gate, accepted = read_gate(store, *limits), frozenset(StoreView.open(store, *limits).ids())
        found = run_sweep(cfg, place, grid, count, inputs, models) if grid else None
    return Preview(cfg, rows, accepted, gate, probe, make_plan(cfg, jobs, unreadable, probe), found)


def read_rows(cfg: Config) -> list[Row]:
    """All rows of a run's store, sorted by id."""
    rows: list[Row] = rows_dataset(store_url(cfg.out)).to_table().to_pylist()
    return sorted(rows, key=lambda row: row["id"])


def loaded_once(load: Callable[[S], T]) -> Callable[[S], T]:
    """A loader that gives the same model for equal settings."""
    models: dict[str, T] = {}

    def loaded(cfg: S) -> T:
        if repr(cfg) not in models:
            models[repr(cfg)] = load(cfg)
        return models[repr(cfg)]

    return loaded

"""Cells: one row with one training seed. Each has an identity, by which work is shared and never done twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gmd_ray.ablation.sweep import Ablation, SweepRow
from gmd_ray.config import Config
from gmd_ray.config.load import load_config
from gmd_ray.config.secrets import digested_values
from gmd_ray.errors import ConfigError
from gmd_ray.hashing import short_digest
from gmd_ray.pairstore import run_settings
from gmd_ray.training.digests import digest_of_path
from gmd_ray.training.spec import NO_EFFECT

DONE_FILE = "cell.json"
"""Written last: a folder with this file is a finished cell."""
STUDENT = "student"
"""Name of the measured student in the evaluation of a cell."""
_SHOWN_ONLY = {
    "pool",
    "remark",
    "report_images",
    "pairs_hq",
    "allow_overlap",
    "device",
    "online",
    "methods",
    "published",
}
"""Fields of `evaluation` that change no figure; `online` counts by the row."""


@dataclass(frozen=True)
class Cell:
    """A row with one training seed."""

    row: SweepRow
    seed: int | None
    """Training seed; None where nothing is trained."""
    cfg: Config
    """The settings of the cell. Its `out` is the folder whose `pairs` it reads."""
    kind: str
    """The fine-tune; `source_only` also for an adapted student at ratio 1, which is the same."""
    store: str | None
    """Key of the pair store that it reads; None if it reads none."""
    folder: str
    """The folder of its results, named by its identity."""

    @property
    def trains(self) -> bool:
        """A student is fine-tuned."""
        return self.kind not in ("baseline", "pairs")

    @property
    def measures(self) -> bool:
        """A student is measured."""
        return self.kind != "pairs"

    @property
    def measured(self) -> str:
        """Name of the row of the evaluation that the cell is about."""
        return f"{STUDENT}+teacher" if self.row.online else STUDENT

    @property
    def done(self) -> bool:
        """A call has finished it."""
        return Path(self.folder, DONE_FILE).is_file()

    @property
    def label(self) -> str:
        """Name for a person."""
        return self.row.name if self.seed is None else f"{self.row.name}, seed {self.seed}"


def make_cells(sweep: Ablation, args: Sequence[str], out: str, seeds: Sequence[int]) -> list[Cell]:
    """Load the settings of every cell: all rows with the first seed, then with the next.

    The unadapted students that rows are compared with have cells too, whether the table shows them or not.

    Args:
        sweep: the rows.
        args: the base run, as on a command line.
        out: the folder of the sweep.
        seeds: training seeds.

    Raises:
        ConfigError: settings of a row that cannot be used; the line names the row.
    """
    configs = {}
    for row in sweep.rows:
        try:
            configs[row] = load_config([*args, *row.overrides, f"out={out}"])
        except ConfigError as error:
            raise ConfigError(f"row {row.name!r}: {error}") from error
    cells: dict[tuple[str, int | None, str], Cell] = {}
    shown = {cell.folder for row in sweep.rows if row.student == "baseline" for cell in [_cell(row, configs[row], 0)]}
    for row in sweep.rows:
        base = baseline_cell(_cell(row, configs[row], None))
        if base.folder not in shown:
            cells[base.row.name, None, base.folder] = base
    for seed in seeds:
        for row in sweep.rows:
            cell = _cell(row, configs[row], seed)
            cells[row.name, cell.seed, cell.folder] = cell
    return list(cells.values())


def baseline_cell(cell: Cell) -> Cell:
    """The cell of the unadapted student that a cell started from, on the same test sets."""
    row = SweepRow(f"unadapted {Path(str(cell.cfg.student.path)).name}", student="baseline")
    root = str(Path(cell.folder).parents[1])
    return _cell(row, replace(cell.cfg, out=root), None)


def store_key(cfg: Config) -> str:
    """The identity of a pair store: the settings that alter its pixels or scores, and the places of models and photos.

    Thresholds are no part of it: another gate reads the same rows.
    """
    where = {key: place["path"] for key, place in run_settings.places(cfg).items()}
    facts = {"settings": _relevant(cfg), "places": where, "limit": cfg.target.limit}
    return short_digest(json.dumps(facts, sort_keys=True))


def store_folder(out: str, key: str) -> str:
    """The run directory that holds a store."""
    return str(Path(out, "stores", key))


def _cell(row: SweepRow, cfg: Config, seed: int | None) -> Cell:
    kind = row.student
    if kind == "adapted" and cfg.training.source_ratio == 1:
        kind = "source_only"
    reads = kind in ("adapted", "median", "supervised", "pairs")
    key = store_key(cfg) if reads else None
    seed = None if kind in ("baseline", "pairs") else seed
    out = cfg.out
    cell = Cell(
        row=row,
        seed=seed,
        cfg=cfg if key is None else replace(cfg, out=store_folder(out, key)),
        kind=kind,
        store=key,
        folder="",
    )
    identity = short_digest(json.dumps(_identity(cell), sort_keys=True, default=str))
    return replace(cell, folder=str(Path(out, "cells", identity)))


def _identity(cell: Cell) -> dict[str, Any]:
    """Everything that the figures of a cell depend on, and nothing else: rows of several tables may share a cell."""
    cfg = cell.cfg
    facts: dict[str, Any] = {
        "kind": cell.kind,
        "seed": cell.seed,
        "run seed": cfg.seed,
        "student": digest_of_path(str(cfg.student.path)),
        "inference": {k: v for k, v in _given(cfg.student).items() if k not in ("path", "pool", "device")},
    }
    if cell.measures:
        facts["evaluation"] = {k: v for k, v in _given(cfg.evaluation).items() if k not in _SHOWN_ONLY}
        facts["source"] = _given(cfg.source)
    if cell.store is not None:
        facts["pairs"] = [cell.store, cfg.scorer.threshold, cfg.scorer.fidelity_bound]
    if cell.trains:
        chosen_by = ("export", "validate_every", "validation_images")
        training = {k: v for k, v in _given(cfg.training).items() if k not in NO_EFFECT or k in chosen_by}
        if cell.kind == "source_only":
            training["source_ratio"] = 1.0
        facts["training"] = training
        facts["gray"] = [cfg.source.gray, cfg.target.gray]
        if cell.kind == "supervised":
            facts["truth"] = cfg.training.supervised_hq
    if cell.row.online:
        teacher = {k: v for k, v in _relevant(cfg).items() if k.startswith("teacher.")}
        facts["online"] = [teacher, cfg.teacher.path]
    return dict(digested_values(json.loads(json.dumps(facts, default=str))))


def _relevant(cfg: Config) -> dict[str, Any]:
    """The settings that alter pixels or scores and differ from their defaults, for the same reason as `_given`."""
    defaults = run_settings.relevant(Config())
    return {key: value for key, value in run_settings.relevant(cfg).items() if value != defaults.get(key)}


def _given(section: Any) -> dict[str, Any]:
    """The settings of a section that differ from their defaults: a later version with more settings finds its cells."""
    defaults = asdict(type(section)())
    return {key: value for key, value in asdict(section).items() if value != defaults[key]}

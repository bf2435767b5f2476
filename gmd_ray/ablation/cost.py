"""Before a sweep starts: its cells, the projections that it needs and those that sharing saves, and the hours."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gmd_ray.ablation.cells import Cell
from gmd_ray.ablation.run import read_facts
from gmd_ray.config import Config
from gmd_ray.config.sections.checks import teacher_plugin
from gmd_ray.errors import DataError
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.pairstore.manifest import read_manifest
from gmd_ray.pairstore.store import PairStore, store_url
from gmd_ray.planning.plan import survey


@dataclass(frozen=True)
class SweepCost:
    """Work that a sweep will take. Hours are of one process that does one thing after the other; None where unknown."""

    cells: int
    cells_done: int
    stores: int
    projections: int
    """Photos that are still to be projected, over all stores."""
    projections_unshared: int
    """Photos that would be projected if every cell made its own pairs."""
    projection_hours: float | None
    projection_basis: str
    finetunes: int
    """Fine-tunes that are still to be made."""
    finetune_hours: float | None
    finetune_basis: str
    evaluations: int
    evaluation_hours: float | None

    @property
    def hours(self) -> float | None:
        """All hours together; None where a part is unknown."""
        parts = (self.projection_hours, self.finetune_hours, self.evaluation_hours)
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    def text(self) -> str:
        """The cost as lines for a person."""
        saved = self.projections_unshared - self.projections
        rows = [
            ("cells", f"{self.cells:,}", f"{self.cells_done:,} of them finished already"),
            ("pair stores", f"{self.stores:,}", "one for all cells whose settings of Stages 0 to 1b are the same"),
            ("projections", f"{self.projections:,}", f"{saved:,} more without sharing and earlier calls"),
            ("  hours", _hours(self.projection_hours), self.projection_basis),
            ("fine-tunes", f"{self.finetunes:,}", ""),
            ("  hours", _hours(self.finetune_hours), self.finetune_basis),
            ("evaluations", f"{self.evaluations:,}", ""),
            ("  hours", _hours(self.evaluation_hours), ""),
            ("hours in all", _hours(self.hours), "one process, one thing after the other"),
        ]
        return "\n".join(f"{name:<14} {value:>12}  {note}".rstrip() for name, value, note in rows)


def sweep_cost(cells: Sequence[Cell], inputs: RunInputs | None = None) -> SweepCost:
    """Predict the cost of a sweep's unfinished cells.

    Speeds come from what the same folder holds already: seconds a forward pass from its pair stores, seconds a crop
    from its fine-tunes. `plan.tflops` stands in for the first.

    Raises:
        DataError, ModelError: target photos or models that cannot be read.
    """
    inputs = inputs or RunInputs()
    todo = list({cell.folder: cell for cell in cells if not cell.done}.values())
    stores = {cell.store: cell.cfg for cell in cells if cell.store is not None}
    needed = {cell.store for cell in todo if cell.store is not None}
    counts, work, speeds = {}, {}, []
    for key, cfg in stores.items():
        counts[key], flops = _photos(cfg, inputs)
        made = min(_rows(cfg), counts[key])
        work[key] = None if flops is None else flops * (counts[key] - made) / counts[key]
        manifest = read_manifest(PairStore(store_url(cfg.out)))
        if manifest is not None and made and flops:
            seconds = manifest.document.get("seconds_by_stage", {}).get("project", 0.0)
            speeds.append(seconds / (flops * made / counts[key]))
    left = {key: max(0, counts[key] - _rows(stores[key])) for key in needed if key is not None}
    first = next(iter(stores.values()), None)
    projection, basis = _projection_hours([work[key] for key, photos in left.items() if photos], speeds, first)
    trained = [read_facts(cell) for cell in cells if cell.done and cell.trains]
    crops = [facts["train_seconds"] / facts["crops"] for facts in trained if facts.get("crops")]
    trains = [cell for cell in todo if cell.trains]
    total = sum(cell.cfg.training.steps * cell.cfg.training.batch_size for cell in trains)
    measured = [s for cell in cells if cell.done and (s := read_facts(cell).get("evaluate_seconds"))]
    measures = [cell for cell in todo if cell.measures]
    return SweepCost(
        cells=len({cell.folder for cell in cells}),
        cells_done=len({cell.folder for cell in cells if cell.done}),
        stores=len(stores),
        projections=sum(left.values()),
        projections_unshared=sum(counts[cell.store] for cell in cells if cell.store is not None),
        projection_hours=projection,
        projection_basis=basis,
        finetunes=len(trains),
        finetune_hours=_scaled(total, crops),
        finetune_basis=_basis(total, crops, "s a crop in this folder's fine-tunes", "the first fine-tune will tell"),
        evaluations=len(measures),
        evaluation_hours=_scaled(len(measures), measured),
    )


def _rows(cfg: Config) -> int:
    """Rows of a store; 0 where there is none."""
    store = PairStore(store_url(cfg.out))
    if not Path(store.path).is_dir():
        return 0
    try:
        return int(store.index().num_rows)
    except DataError:
        return 0


def _photos(cfg: Config, inputs: RunInputs) -> tuple[int, float | None]:
    """Photos of a store, and the FLOPs of projecting them; None for a plugin, which has no cost model."""
    if teacher_plugin(cfg.teacher.method) is None:  # the name of a plugin, with nothing wrong about it
        return len(inputs.images(cfg.target.path or "", cfg.target.limit)), None
    jobs, _ = survey(cfg, inputs)
    return len(jobs), float(sum(job.flops for job in jobs))


def _projection_hours(
    work: Sequence[float | None], speeds: Sequence[float], cfg: Config | None
) -> tuple[float | None, str]:
    """Hours of so many FLOPs of the teacher, one figure a store, and their basis."""
    known = [flops for flops in work if flops is not None]
    if len(known) < len(work):
        return None, "a teacher of one's own has no cost model"
    if not known:
        return 0.0, ""
    if speeds:
        return sum(known) * statistics.median(speeds) / 3600, "the teacher's FLOPs at the speed of this folder's stores"
    if cfg is not None and cfg.plan.tflops is not None:
        return sum(known) / (cfg.plan.tflops * 1e12) / 3600, f"the teacher's FLOPs at plan.tflops={cfg.plan.tflops:g}"
    return None, "give plan.tflops=..., or let the first store tell"


def _scaled(amount: int, speeds: Sequence[float]) -> float | None:
    if not amount:
        return 0.0
    return amount * statistics.median(speeds) / 3600 if speeds else None


def _basis(amount: int, speeds: Sequence[float], known: str, unknown: str) -> str:
    return "" if not amount else f"{statistics.median(speeds):.3g} {known}" if speeds else unknown


def _hours(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"

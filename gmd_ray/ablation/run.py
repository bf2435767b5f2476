"""`run_sweep`: every store that the cells need, once; then cell after cell; and the table after each of them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from gmd_ray.ablation.cells import DONE_FILE, STUDENT, Cell
from gmd_ray.ablation.pairs import pair_figures
from gmd_ray.ablation.sweep import Ablation
from gmd_ray.config import Config
from gmd_ray.evaluation import Evaluation, evaluate, load_evaluation
from gmd_ray.evaluation.actor import EvaluationActor
from gmd_ray.evaluation.evaluate import collect
from gmd_ray.evaluation.items import held_out_items, students_with_teacher
from gmd_ray.generation import generate
from gmd_ray.generation.prompts import with_prompts
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.progress import NullRecorder, Recorder
from gmd_ray.storage import replacing
from gmd_ray.training import finetune

log = logging.getLogger("gmd_ray.ablation")


def run_sweep(
    sweep: Ablation,
    cells: Sequence[Cell],
    recorder: Recorder | None = None,
    *,
    inputs: RunInputs | None = None,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Finish every cell of a sweep, in order. The same call again goes on where the last one stopped.

    A pair store is made when the first cell needs it, and read by all others of the same settings. Ray must be
    initialised, unless `ray.enabled=false`: then all stages run in this process.

    Args:
        sweep: the table that the cells belong to.
        cells: the result of `make_cells`.
        recorder: the parent run; each store and each cell gets a child of its name.
        inputs: folder listings that the cells share.
        after: called after every cell, to bring the table up to date.

    Raises:
        GmdError: whatever ends a stage, see `generate`, `finetune` and `evaluate`. Finished cells stay.
    """
    recorder, inputs = recorder or NullRecorder(), inputs or RunInputs()
    made: set[str] = set()
    todo = [cell for cell in cells if not cell.done]
    log.info("%s: %d cells, %d of them are finished already", sweep.name, len(cells), len(cells) - len(todo))
    for cell in cells:
        if cell.done:  # by an earlier call, or for another table
            with recorder.stage(cell.label) as child:
                _tell(cell, child)
    for number, cell in enumerate(todo, start=1):
        if cell.done:  # another row of this table is the same
            continue
        started = time.monotonic()
        if cell.store is not None and cell.store not in made:
            with recorder.stage(f"generate-{cell.store[:8]}") as child:
                log.info("%s", generate(cell.cfg, child, inputs=inputs))
            made.add(cell.store)
        with recorder.stage(cell.label) as child:
            _write_done(cell, run_cell(cell, child, inputs))
            _tell(cell, child)
        log.info("%d of %d: %s: %.0f s", number, len(todo), cell.label, time.monotonic() - started)
        after()


def run_cell(cell: Cell, recorder: Recorder, inputs: RunInputs) -> dict[str, Any]:
    """Train and measure the student of one cell, whose pair store is finished.

    Returns:
        Facts for `cell.json`: times in seconds, crops that were trained on, and figures of the pairs.
    """
    facts: dict[str, Any] = {}
    student = str(cell.cfg.student.path)
    if cell.trains:
        started = time.monotonic()
        cfg = cell.cfg if cell.kind != "source_only" else _at_ratio_one(cell.cfg)
        directory = str(Path(cell.folder, "finetune"))
        student = finetune(cfg, cell.kind, recorder, seed=cell.seed, inputs=inputs, directory=directory).path
        crops = cfg.training.steps * cfg.training.batch_size
        facts |= {"train_seconds": time.monotonic() - started, "crops": crops}
    if cell.store is not None:
        facts["pairs"] = pair_figures(cell.cfg, inputs)
    if cell.measures:
        started = time.monotonic()
        online: bool | list[str] = [STUDENT] if cell.row.online else False
        kept = replace(cell.cfg.evaluation, online=online, report_images=0, methods={}, published=None)
        measure(replace(cell.cfg, out=cell.folder, evaluation=kept), student, recorder, inputs)
        facts["evaluate_seconds"] = time.monotonic() - started
    return facts


def measure(cfg: Config, student: str, recorder: Recorder, inputs: RunInputs) -> Evaluation:
    """Measure one student on the test sets and save the evaluation below `cfg.out`.

    With `ray.enabled=false` the images pass one after another through an actor's own code in this process.
    """
    students = {STUDENT: student}
    if cfg.ray.enabled:
        return evaluate(cfg, students, recorder, inputs=inputs)
    if students_with_teacher(cfg, students):
        cfg = with_prompts(cfg)
    items = held_out_items(cfg, inputs)
    evaluation = collect(cfg, students, items, [EvaluationActor(cfg, students)(pa.Table.from_pylist(items))])
    evaluation.save(cfg.out)
    return evaluation


def read_facts(cell: Cell) -> dict[str, Any]:
    """The facts that `run_cell` left about a finished cell; empty for another."""
    path = Path(cell.folder, DONE_FILE)
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def _write_done(cell: Cell, facts: dict[str, Any]) -> None:
    about = {"row": cell.row.name, "settings": list(cell.row.overrides), "seed": cell.seed, "kind": cell.kind}
    Path(cell.folder).mkdir(parents=True, exist_ok=True)
    with replacing(Path(cell.folder, DONE_FILE)) as draft:
        draft.write_text(json.dumps({**about, "student": str(cell.cfg.student.path), **facts}, indent=2))


def _tell(cell: Cell, recorder: Recorder) -> None:
    """Give the settings and the means of a finished cell to its run."""
    recorder.params({"row": cell.row.name, "settings": list(cell.row.overrides), "seed": cell.seed})
    if cell.measures and not isinstance(recorder, NullRecorder):
        recorder.metrics(_means(load_evaluation(cell.folder), cell.measured))


def _at_ratio_one(cfg: Config) -> Config:
    return replace(cfg, training=replace(cfg.training, source_ratio=1.0))


def _means(evaluation: Evaluation, student: str) -> dict[str, float]:
    means = {}
    for dataset in evaluation.datasets:
        for metric in evaluation.metrics:
            mean = evaluation.mean(student, dataset, metric)
            if mean is not None:
                means[f"{dataset}/{metric}"] = mean
    return means

"""`evaluate`: comparing the baseline with adapted students on held-out images."""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gmd_ray.config import Config
from gmd_ray.config.places import below
from gmd_ray.errors import ConfigError, InterruptedRunError, nearest
from gmd_ray.evaluation.actor import ADAPTED, FAILURE, SCHEMA, EvaluationActor
from gmd_ray.evaluation.items import Item, held_out_items
from gmd_ray.evaluation.methods import find_outputs, plan_methods
from gmd_ray.evaluation.pictures import KeptPictures
from gmd_ray.evaluation.results import (
    NO_TRUTH,
    PICTURES,
    ROWS,
    TRUTH,
    UNTOUCHED,
    Evaluation,
    InferenceCost,
    evaluation_folder,
)
from gmd_ray.evaluation.set_metrics import SetMetrics
from gmd_ray.evaluation.store import open_store, pair_items
from gmd_ray.evaluation.summaries import FILES, save_tables
from gmd_ray.evaluation.summaries.published import published_rows
from gmd_ray.evaluation.table import source_loss
from gmd_ray.generation.prompts import with_prompts
from gmd_ray.hashing import content_digest
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.progress import NullRecorder, Progress, Recorder
from gmd_ray.quality import known_metrics, metric_variant
from gmd_ray.ray_utils.metrics import ActorNames, model_name
from gmd_ray.ray_utils.pools import entitle, restarting_pool
from gmd_ray.ray_utils.remote_errors import from_text
from gmd_ray.text import one_line

log = logging.getLogger("gmd_ray.evaluation")


def evaluate(
    cfg: Config, students: dict[str, str], recorder: Recorder | None = None, *, inputs: RunInputs | None = None
) -> Evaluation:
    """Measure students on the test sets of `cfg.evaluation`.

    The test images pass through one Ray Data stream. Each actor holds all students, all metrics, and the teachers and
    further students that `cfg.evaluation.online` and `cfg.evaluation.methods` ask for. The call writes
    `<out>/evaluation/metrics.parquet` (a row for each image, method and metric), `pictures.parquet` (the pictures of
    the report) and the tables of `record`.

    Args:
        cfg: the settings.
        students: paths of checkpoints by name, `baseline` first. The input itself is measured too, as `lq`, enlarged
            to the size of the outputs where they are larger.
        recorder: gets figures and tables.
        inputs: folder listings that the run shares; the folders are listed here if it is None.

    Raises:
        ConfigError: no test set, an unknown metric, a name that is taken, or an unknown one in `evaluation.online`.
        DataError: test images without their partner, or without an output in a folder of outputs.
        ModelError: a checkpoint cannot be loaded.
        GmdError: Ray ended the evaluation.
    """
    recorder = recorder or NullRecorder()
    _check(cfg, students)
    methods = plan_methods(cfg, students)
    items = held_out_items(cfg, inputs)
    if not items:
        raise ConfigError("the test sets of evaluation.* hold no images")
    find_outputs(methods, items)
    measured = len(items)
    store = open_store(cfg) if ADAPTED in students else None
    if store is not None:
        items += pair_items(store, cfg.evaluation.report_images)
    for method in methods:
        if method.teacher is not None:  # the actors find what is encoded here
            with_prompts(replace(cfg, teacher=method.teacher))
    evaluation = collect(cfg, students, items, _stream(cfg, students, items, measured))
    evaluation.save(cfg.out)
    record(cfg, evaluation, recorder)
    return evaluation


def record(cfg: Config, evaluation: Evaluation, recorder: Recorder | None = None) -> None:
    """Write the tables of an evaluation below `<out>/evaluation`, give its figures to the recorder, and log warnings.

    The files are `table.md`, `table.tex` and `summary.json`; none of the images is needed.
    """
    recorder = recorder or NullRecorder()
    save_tables(evaluation, cfg.out)
    recorder.metrics(_figures(evaluation))
    for name in (*FILES, "metrics.parquet"):
        recorder.artifact(below(evaluation_folder(cfg.out), name), "evaluation")
    for metric, reason in evaluation.unavailable.items():
        log.warning("metric %s is unavailable: %s", metric, reason)
    for dataset in evaluation.datasets:
        for metric in evaluation.lacking(dataset):
            log.warning("metric %s is unavailable on %s: %s", metric, dataset, NO_TRUTH)
    if loss := source_loss(evaluation):
        log.warning("%s", loss)


def _check(cfg: Config, students: Mapping[str, str]) -> None:
    if not students:
        raise ConfigError("no students to evaluate")
    for name in {UNTOUCHED, TRUTH} & set(students):
        raise ConfigError(f"a student cannot be called {name!r}: that is the name of the photo or of its ground truth")
    if not cfg.evaluation.metrics:
        raise ConfigError("evaluation.metrics is empty: name at least one metric")
    if cfg.evaluation.published is not None:
        published_rows(cfg.evaluation.published)
    known = known_metrics()
    for name in cfg.evaluation.metrics:
        if name not in known:
            raise ConfigError(f"evaluation.metrics: no metric {name!r}; {nearest(name, known)}")


def _stream(cfg: Config, students: Mapping[str, str], items: list[Item], measured: int) -> Iterator[pa.Table]:
    """Measure the items with a pool of actors: tables of schema `actor.SCHEMA`, as they arrive."""
    import ray.data
    from ray.exceptions import RayError

    pool = cfg.evaluation.pool
    blocks = math.ceil(len(items) / pool.batch_size)
    with restarting_pool(pool, ActorNames("evaluate", model_name(cfg.student))) as options:
        stream = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
            EvaluationActor,
            fn_constructor_args=(cfg, dict(students)),
            batch_format="pyarrow",
            batch_size=pool.batch_size,
            **options,
        )
    entitle(stream, "gmd_evaluate")
    try:
        with Progress("evaluate", measured, interval_s=cfg.log_interval_s) as progress:
            for batch in stream.iter_batches(batch_size=None, batch_format="pyarrow"):
                table = batch.select(SCHEMA.names).cast(SCHEMA)
                _raise_failure(table)
                values = table.filter(pc.field("metric").is_valid())
                progress.update(len(values.group_by(["dataset", "id"]).aggregate([])))
                yield table
    except RayError as error:
        raise InterruptedRunError(
            f"the evaluation stopped on a Ray error: {type(error).__name__}: {one_line(error, 300)}"
        ) from error


def collect(cfg: Config, students: Mapping[str, str], items: list[Item], tables: Iterable[pa.Table]) -> Evaluation:
    """Build an evaluation from the tables of `EvaluationActor`, whose rows may come in any order."""
    # Made before the first table is asked for: it marks the items whose pictures the actors have to make.
    sets, kept = SetMetrics(), KeptPictures(items, cfg.evaluation.metrics, cfg.evaluation.report_images)
    rest = [sets.take(kept.take(table)) for table in tables]
    table = pa.concat_tables([kept.pictures, *rest])
    # Sorted by name and not by arrival, so that the same run writes the same file.
    order = [(name, "ascending") for name in ("dataset", "id", "student", "metric")]
    of_sets = pa.Table.from_pylist(list(sets.rows()), schema=ROWS)
    rows = table.filter(pc.field("metric").is_valid()).select(ROWS.names)
    rows = pa.concat_tables([rows, of_sets]).sort_by(order)
    place = {(item["dataset"], item["id"]): i for i, item in enumerate(items)}
    pictures = table.filter(pc.field("png").is_valid()).select(PICTURES.names).to_pylist()
    pictures.sort(key=lambda row: (place[row["dataset"], row["id"]], row["name"]))
    names = [UNTOUCHED, *(method.name for method in plan_methods(cfg, students))]
    named, e = set(rows["student"].unique().to_pylist()), cfg.evaluation
    # The text of evaluations without alignment stays as it was, so that a champion of before can be compared with.
    settings = f"crop_border={e.crop_border}" + ("" if e.align == "none" else f" align={e.align}")
    return Evaluation(
        rows=rows,
        pictures=pa.Table.from_pylist(pictures, schema=PICTURES),
        students=tuple(name for name in names if name in named),
        metrics=tuple(e.metrics),
        settings=settings,
        contents=_contents(cfg, table),
        costs=_costs(table),
        variants={name: metric_variant(name, e.crop_border, e.align) for name in e.metrics},
        published=e.published,
    )


def _contents(cfg: Config, table: pa.Table) -> dict[str, str]:
    """A digest of the pixels of each test set; two folders may hold different images under the same names."""
    made = cfg.evaluation.source_lq is None  # then the degradation is part of the test set
    degradation = [cfg.source.degradation, cfg.source.degradation_args, cfg.seed] if made else None
    lines: dict[str, list[str]] = {}
    for row in table.filter(pc.field("content").is_valid()).to_pylist():
        lines.setdefault(row["dataset"], []).append(f"{row['id']} {row['content']}")
    about = {"source": json.dumps(degradation, sort_keys=True, default=str)}
    return {
        name: content_digest("\n".join([about.get(name, ""), *sorted(pictures)]).encode())
        for name, pictures in sorted(lines.items())
    }


def _costs(table: pa.Table) -> dict[str, dict[str, InferenceCost]]:
    """The cost of every student on every test set."""
    # The first image of an actor pays for what the first use of a network costs, and counts where there is no other.
    rows_of: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table.filter(pc.field("seconds").is_valid()).to_pylist():
        rows_of.setdefault((row["dataset"], row["student"]), []).append(row)
    costs: dict[str, dict[str, InferenceCost]] = {}
    for (dataset, student), rows in sorted(rows_of.items()):
        rows = [row for row in rows if row["warm"]] or rows
        seconds = statistics.median(row["seconds"] for row in rows)
        device = statistics.mode(sorted(row["device"] for row in rows))
        costs.setdefault(dataset, {})[student] = InferenceCost(rows[0]["parameters"], seconds, device)
    return costs


def _raise_failure(table: pa.Table) -> None:
    """Raise the error that an actor met while it loaded its models."""
    for row in table.filter(pc.field("dataset") == FAILURE).slice(0, 1).to_pylist():
        raise from_text(row["error"])


def _figures(evaluation: Evaluation) -> dict[str, float]:
    """Means as `<dataset>/<student>/<metric>`; the same with `.difference`, `.low`, `.high` compares with the baseline.

    A dot and no slash, because MLflow's file store keeps a metric in a file of its name, which cannot be a folder too.
    """
    figures = {}
    for dataset in evaluation.datasets:
        for student in (*evaluation.students, TRUTH):
            for metric in evaluation.metrics:
                key, mean = f"{dataset}/{student}/{metric}", evaluation.mean(student, dataset, metric)
                if mean is None:
                    continue
                figures[key] = mean
                difference = evaluation.difference(student, dataset, metric)
                if difference is not None and difference.low is not None and difference.high is not None:
                    ends = {"difference": difference.mean, "low": difference.low, "high": difference.high}
                    figures |= {f"{key}.{name}": value for name, value in ends.items()}
    return figures

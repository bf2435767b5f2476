"""`evaluate`: comparing the baseline with adapted students on held-out images."""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gmd_ray.config import Config
from gmd_ray.errors import ConfigError, DataError, GmdError, nearest
from gmd_ray.evaluation.actor import ADAPTED, FAILURE, SCHEMA, EvaluationActor
from gmd_ray.evaluation.items import Item, held_out_items, students_with_teacher, with_teacher_row
from gmd_ray.evaluation.pictures import KeptPictures
from gmd_ray.evaluation.results import NO_TRUTH, PICTURES, ROWS, TRUTH, WHOLE_SET, Evaluation, InferenceCost
from gmd_ray.evaluation.store import open_store, pair_items
from gmd_ray.evaluation.table import save_table, source_loss
from gmd_ray.generation.prompts import with_prompts
from gmd_ray.hashing import content_digest
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.progress import NullRecorder, Progress, Recorder
from gmd_ray.quality import compare_sets, known_metrics
from gmd_ray.ray_utils.pools import restarting_pool, silence
from gmd_ray.ray_utils.remote_errors import from_text
from gmd_ray.text import one_line

log = logging.getLogger("gmd_ray.evaluation")


def evaluate(
    cfg: Config, students: dict[str, str], recorder: Recorder | None = None, *, inputs: RunInputs | None = None
) -> Evaluation:
    """Measure students on the test sets of `cfg.evaluation`.

    The test images pass through one Ray Data stream. Each actor holds all students, all metrics and, if
    `cfg.evaluation.online` asks for rows such as `baseline+teacher`, the teacher. The call writes
    `<out>/evaluation/metrics.parquet` (a row for each image, student and metric), `pictures.parquet` (the pictures of
    the report) and `table.md`, and gives the means to the recorder as `<dataset>/<student>/<metric>`.

    Args:
        cfg: the settings.
        students: paths of checkpoints by name, `baseline` first. If the students keep the size of their input, the
            input itself is measured too, as `lq`.
        recorder: gets figures and tables.
        inputs: folder listings that the run shares; the folders are listed here if it is None.

    Raises:
        ConfigError: no test set, an unknown metric, a student called `lq`, or an unknown name in `evaluation.online`.
        DataError: test images without their partner.
        ModelError: a checkpoint cannot be loaded.
        GmdError: Ray ended the evaluation.
    """
    recorder = recorder or NullRecorder()
    _check(cfg, students)
    items = held_out_items(cfg, inputs)
    if not items:
        raise ConfigError("the test sets of evaluation.* hold no images")
    measured = len(items)
    store = open_store(cfg) if ADAPTED in students else None
    if store is not None:
        items += pair_items(store, cfg.evaluation.report_images)
    if students_with_teacher(cfg, students):
        cfg = with_prompts(cfg)
    evaluation = collect(cfg, students, items, _stream(cfg, students, items, measured))
    evaluation.save(cfg.out)
    save_table(evaluation, cfg.out)
    recorder.metrics(_means(evaluation))
    for name in ("table.md", "metrics.parquet"):
        recorder.artifact(f"{cfg.out}/evaluation/{name}", "evaluation")
    for metric, reason in evaluation.unavailable.items():
        log.warning("metric %s is unavailable: %s", metric, reason)
    for dataset in evaluation.datasets:
        for metric in evaluation.lacking(dataset):
            log.warning("metric %s is unavailable on %s: %s", metric, dataset, NO_TRUTH)
    if loss := source_loss(evaluation):
        log.warning("%s", loss)
    return evaluation


def _check(cfg: Config, students: Mapping[str, str]) -> None:
    if not students:
        raise ConfigError("no students to evaluate")
    if "lq" in students:
        raise ConfigError("a student cannot be called 'lq': that is the name of the unprocessed input")
    if not cfg.evaluation.metrics:
        raise ConfigError("evaluation.metrics is empty: name at least one metric")
    students_with_teacher(cfg, students)
    known = known_metrics()
    for name in cfg.evaluation.metrics:
        if name not in known:
            raise ConfigError(f"evaluation.metrics: no metric {name!r}; {nearest(name, known)}")


def _stream(cfg: Config, students: Mapping[str, str], items: list[Item], measured: int) -> pa.Table:
    """Measure the items with a pool of actors: rows of schema `actor.SCHEMA`, in the order of their arrival."""
    import ray.data
    from ray.exceptions import RayError

    pool = cfg.evaluation.pool
    pictures = KeptPictures(items, cfg.evaluation.metrics, cfg.evaluation.report_images)
    blocks = math.ceil(len(items) / pool.batch_size)
    with restarting_pool(pool) as options:
        stream = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
            EvaluationActor,
            fn_constructor_args=(cfg, dict(students)),
            batch_format="pyarrow",
            batch_size=pool.batch_size,
            **options,
        )
    silence(stream)
    tables = []
    try:
        with Progress("evaluate", measured, interval_s=cfg.log_interval_s) as progress:
            for batch in stream.iter_batches(batch_size=None, batch_format="pyarrow"):
                table = batch.select(SCHEMA.names).cast(SCHEMA)
                _raise_failure(table)
                tables.append(pictures.take(table))
                values = table.filter(pc.field("metric").is_valid())
                progress.update(len(values.group_by(["dataset", "id"]).aggregate([])))
    except RayError as error:
        raise GmdError(
            f"the evaluation stopped on a Ray error: {type(error).__name__}: {one_line(error, 300)}"
        ) from error
    return pa.concat_tables([pictures.pictures, *tables])


def collect(cfg: Config, students: Mapping[str, str], items: list[Item], table: pa.Table) -> Evaluation:
    """Build an evaluation from the rows of `EvaluationActor`, which may come in any order."""
    has_metric = pc.field("metric").is_valid() & ~pc.field("features").is_valid()
    # Sorted by name and not by arrival, so that the same run writes the same file.
    order = [(name, "ascending") for name in ("dataset", "id", "student", "metric")]
    of_sets = pa.Table.from_pylist(list(_set_rows(table)), schema=ROWS)
    rows = pa.concat_tables([table.filter(has_metric).select(ROWS.names), of_sets]).sort_by(order)
    place = {(item["dataset"], item["id"]): i for i, item in enumerate(items)}
    pictures = table.filter(pc.field("png").is_valid()).select(PICTURES.names).to_pylist()
    pictures.sort(key=lambda row: (place[row["dataset"], row["id"]], row["name"]))
    names = ["lq", *(row for name in students for row in (name, with_teacher_row(name)))]
    named = set(rows["student"].unique().to_pylist())
    return Evaluation(
        rows=rows,
        pictures=pa.Table.from_pylist(pictures, schema=PICTURES),
        students=tuple(name for name in names if name in named),
        metrics=tuple(cfg.evaluation.metrics),
        settings=f"crop_border={cfg.evaluation.crop_border}",
        contents=_contents(cfg, table),
        costs=_costs(table),
    )


def _set_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """One row per test set, student and metric for the metrics that compare sets of images, such as FID."""
    features: dict[tuple[str, str, str], list[np.ndarray]] = {}
    for row in table.filter(pc.field("features").is_valid()).to_pylist():
        key = (row["dataset"], row["student"], row["metric"])
        features.setdefault(key, []).append(np.frombuffer(row["features"], np.float32))
    for (dataset, student, metric), vectors in sorted(features.items()):
        if student == TRUTH:
            continue
        truths = features.get((dataset, TRUTH, metric), [])
        higher = known_metrics()[metric].higher_is_better
        row = {"dataset": dataset, "id": WHOLE_SET, "student": student, "metric": metric, "higher_is_better": higher}
        try:
            yield {**row, "value": compare_sets(metric, np.array(vectors), np.array(truths))}
        except DataError as error:
            yield {**row, "error": str(error)}


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
    rows_of: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table.filter(pc.field("seconds").is_valid()).to_pylist():
        rows_of.setdefault((row["dataset"], row["student"]), []).append(row)
    costs: dict[str, dict[str, InferenceCost]] = {}
    for (dataset, student), rows in sorted(rows_of.items()):
        seconds = statistics.median(row["seconds"] for row in rows)
        device = statistics.mode(sorted(row["device"] for row in rows))
        costs.setdefault(dataset, {})[student] = InferenceCost(rows[0]["parameters"], seconds, device)
    return costs


def _raise_failure(table: pa.Table) -> None:
    """Raise the error that an actor met while it loaded its models."""
    for row in table.filter(pc.field("dataset") == FAILURE).slice(0, 1).to_pylist():
        raise from_text(row["error"])


def _means(evaluation: Evaluation) -> dict[str, float]:
    means = {}
    for dataset in evaluation.datasets:
        for student in evaluation.students:
            for metric in evaluation.metrics:
                mean = evaluation.mean(student, dataset, metric)
                if mean is not None:
                    means[f"{dataset}/{student}/{metric}"] = mean
    return means

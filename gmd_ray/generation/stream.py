"""Stages 0, 1 and 1b as one Ray Data stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from gmd_ray.config import Config, PoolConfig
from gmd_ray.errors import ConfigError, GmdError
from gmd_ray.generation.lock import StoreLostError, held, lock_path
from gmd_ray.generation.parts import write_part
from gmd_ray.generation.quarantine import one_line
from gmd_ray.generation.stages import Project, Replica, Restore, Score, read_images
from gmd_ray.images.listing import ImageFile, open_filesystem
from gmd_ray.quality import load_scorer
from gmd_ray.students import load_student
from gmd_ray.teachers import load_teacher

TASK_CPUS = 0.2
"""CPUs of a read or write task: bound by decoding and disks, and there must always be room for one beside the pools."""

SUMMARY = ["id", "status", "score", "error_stage", "seconds_restore", "seconds_project", "seconds_score"]


@dataclass(frozen=True)
class Models:
    """How the pools load their models; plugins and tests put their own loaders here."""

    student: Callable[[Any], Any] = load_student
    teacher: Callable[[Any], Any] = load_teacher
    scorer: Callable[[Any], Any] = load_scorer


def stream(
    cfg: Config, files: list[ImageFile], store_url: str, token: str, ledger: ray.actor.ActorHandle, models: Models
) -> Iterator[pa.Table]:
    """Take the files through all stages into the store; gives a summary (columns SUMMARY) of each block written.

    Raises:
        GmdError: why the run cannot go on, in one line.
    """
    check_room(cfg)
    generation = cfg.generation
    attempts = generation.max_attempts

    # Exact blocks: what travels, is retried and becomes one part file together.
    inputs = pa.table({"id": [f.id for f in files], "uri": [f.uri for f in files]})
    step = generation.rows_per_block
    ds = ray.data.from_arrow([inputs.slice(start, step) for start in range(0, len(files), step)])

    # Read and decode on CPU tasks; a file that does not decode is a failed row from here on.
    reading = {
        "gray": cfg.target.gray, "max_pixels": cfg.target.max_pixels, "ledger": ledger, "max_attempts": attempts,
    }  # fmt: skip
    ds = ds.map_batches(
        read_images, fn_kwargs=reading, batch_size=None, batch_format="pyarrow", num_cpus=TASK_CPUS
    )
    # Stage 0: restore.
    ds = _pool(ds, Restore, Replica(models.student, cfg.student, ledger, attempts), step)
    # Stage 1: project.
    ds = _pool(ds, Project, Replica(models.teacher, cfg.teacher, ledger, attempts), step)
    # Stage 1b: score.
    ds = _pool(ds, Score, Replica(models.scorer, cfg.scorer, ledger, attempts), step)
    # Every row is written, whatever its score: a filter here would make each resume project the rejected ones again.
    writing = {
        "store_url": store_url, "token": token, "keep_restored": generation.keep_restored, "ledger": ledger,
    }  # fmt: skip
    ds = ds.map_batches(
        write_rows, fn_kwargs=writing, batch_size=None, batch_format="pyarrow", num_cpus=TASK_CPUS
    )

    context = ds.context
    context.execution_no_progress_timeout_s = generation.no_progress_timeout_s
    context.enable_progress_bars = False
    try:
        for table in ds.iter_batches(batch_size=None, batch_format="pyarrow"):
            if table.num_rows:
                yield table
    except Exception as error:
        reason = ray.get(ledger.error.remote())
        if reason is not None:
            raise reason from None
        if isinstance(error, GmdError):
            raise
        if "no_progress" in type(error).__name__.lower() or "Timeout" in type(error).__name__:
            raise GmdError(
                f"no image was finished in {generation.no_progress_timeout_s} s (generation.no_progress_timeout_s); "
                f"what was written stays; {one_line(error)}"
            ) from error
        raise


def _pool(ds: Dataset, stage: type, replica: Replica, step: int) -> Dataset:
    pool: PoolConfig = replica.config.pool
    return ds.map_batches(
        stage,
        fn_constructor_args=(replica,),
        compute=ActorPoolStrategy(min_size=pool.min, max_size=pool.max),
        batch_size=step if pool.num_gpus else None,  # Ray wants a number where GPUs are asked for
        batch_format="pyarrow",
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus or None,
    )


def write_rows(
    table: pa.Table, store_url: str, token: str, keep_restored: bool, ledger: ray.actor.ActorHandle
) -> pa.Table:
    """Write a block as one part file, whole or not at all; gives its summary.

    A repeat of the task writes the same file again. The lock is looked at first: a late write of a driver that was
    killed must not land in the store of its successor.
    """
    filesystem, path = open_filesystem(store_url)
    if not held(filesystem, lock_path(path), token):
        error = StoreLostError(f"{store_url}: this run no longer holds the store; nothing more is written")
        ray.get(ledger.fail.remote(error))
        raise error
    if not keep_restored:
        column = table.schema.get_field_index("restored")
        table = table.set_column(column, table.schema.field(column), pa.nulls(len(table), pa.binary()))
    write_part(filesystem, f"{path}/rows", table)
    return table.select(SUMMARY)


def check_room(cfg: Config) -> None:
    """Refuse pools whose smallest sizes leave no CPU for reading: such a stream would wait for ever (ray#44687).

    Raises:
        ConfigError: with the numbers. A cluster that starts small and grows must start with these.
    """
    pools = {name: getattr(cfg, name).pool for name in ("student", "teacher", "scorer")}
    for resource, task in (("CPU", TASK_CPUS), ("GPU", 0.0)):
        attribute = f"num_{resource.lower()}s"
        need = {name: pool.min * getattr(pool, attribute) for name, pool in pools.items()}
        total = sum(need.values()) + task
        there = ray.cluster_resources().get(resource, 0.0)
        if total > there + 1e-9:
            parts = " + ".join(f"{name} {value:g}" for name, value in need.items())
            raise ConfigError(
                f"the pools need {math.ceil(total * 100) / 100:g} {resource}s ({parts} + tasks {task:g}), the cluster "
                f"has {there:g}; lower student/teacher/scorer.pool.{attribute} or .min, or add nodes"
            )

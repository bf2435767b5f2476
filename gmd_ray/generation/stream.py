"""Stages 0, 1 and 1b as one Ray Data stream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import Dataset
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError, RayTaskError

from gmd_ray.config import Config, PoolConfig, ScorerConfig, StudentConfig, TeacherConfig
from gmd_ray.config.secrets import known
from gmd_ray.errors import GmdError
from gmd_ray.generation.ledger import START, AtWork
from gmd_ray.generation.reading import read_images
from gmd_ray.generation.stages import Project, Replica, Restore, Score
from gmd_ray.generation.watchdog import batch_bound
from gmd_ray.generation.writer import write_rows
from gmd_ray.images.listing import ImageFile
from gmd_ray.pairstore.schema import PAIR_SCHEMA
from gmd_ray.quality import Scorer, load_scorer
from gmd_ray.ray_utils.capacity import TASK_CPUS, read_cpus
from gmd_ray.ray_utils.pools import GROW_AT, actor_pool
from gmd_ray.ray_utils.ray_internals import let_go_of_dead_runs, limit_blocks_in_flight
from gmd_ray.storage import absolute_if_exists
from gmd_ray.students import Student, load_student
from gmd_ray.teachers import Teacher, load_teacher
from gmd_ray.text import one_line

STALLED = 0.5
"""Of the time without a finished block, for which an image must have been at work to be suspected of the stall."""
SHOWN = 4


@dataclass(frozen=True)
class Models:
    """How the pools load their models; plugins and tests put their own loaders here. Each must pickle."""

    student: Callable[[StudentConfig], Student] = load_student
    teacher: Callable[[TeacherConfig], Teacher] = load_teacher
    scorer: Callable[[ScorerConfig], Scorer] = load_scorer


def build_stream(
    cfg: Config, files: list[ImageFile], store_url: str, token: str, ledger: ray.actor.ActorHandle, models: Models
) -> Dataset:
    """Photos in, a summary of each part file written out (columns `writer.SUMMARY`).

    Ray repeats a task whose worker died for ever (`max_restarts` and `max_task_retries` -1). That is left so: a bound
    there would fail the whole run, or lose a block of rows; the ledger bounds the attempts of each row instead.
    """
    generation, configs = cfg.generation, model_configs(cfg)
    attempts, step, bound = generation.max_attempts, generation.rows_per_block, batch_bound(generation)

    def replica(section: str) -> Replica:
        return Replica(getattr(models, section), configs[section], ledger, attempts, bound)

    # Exact blocks: what travels, is retried and becomes one part file together. `from_arrow` would ask a task for the
    # number of rows of each; slices of one table of all files would hold the driver's memory several times.
    ds = ray.data.from_blocks([_inputs(files[start : start + step]) for start in range(0, len(files), step)])

    # Read and decode on CPU tasks; a file that does not decode is a failed row from here on, and passes all stages.
    ds = ds.map_batches(
        read_images,
        fn_kwargs={
            "gray": cfg.target.gray,
            "max_pixels": cfg.target.max_pixels,
            "ledger": ledger,
            "max_attempts": attempts,
            "bound": bound,
        },
        batch_format="pyarrow",
        num_cpus=read_cpus(cfg.student.pool),
    )
    # Stage 0: the student restores.
    ds = _pool(ds, Restore, replica("student"), step)
    # Stage 1: the teacher projects.
    ds = _pool(ds, Project, replica("teacher"), step)
    # Stage 1b: the gate scores.
    ds = _pool(ds, Score, replica("scorer"), step)
    # Every row is written, whatever its score: a filter here would make each resume project the rejected ones again.
    ds = ds.map_batches(
        write_rows,
        fn_kwargs={
            "store_url": store_url,
            "token": token,
            "keep_restored": generation.keep_restored,
            "ledger": ledger,
            "hide": known(),
        },
        batch_format="pyarrow",
        num_cpus=TASK_CPUS,
    )
    ds.context.execution_no_progress_timeout_s = generation.no_progress_timeout_s
    # A pool goes down when its input is used up, never for a lull: a teacher takes minutes to load.
    ds.context.autoscaling_config.actor_pool_util_downscaling_threshold = -1
    ds.context.autoscaling_config.actor_pool_util_upscaling_threshold = GROW_AT
    limit_blocks_in_flight(ds.context, cfg)
    let_go_of_dead_runs()
    ds.context.enable_progress_bars = False  # they would fight ours
    ds.context.issue_detectors_config.detectors = []  # advice for authors of Ray programs, in a user's log
    return ds


def _inputs(files: list[ImageFile]) -> pa.Table:
    columns = {"id": "id", "uri": "uri", "bytes": "size", "modified": "modified"}
    return pa.table(
        {
            name: pa.array([getattr(file, field) for file in files], PAIR_SCHEMA.field(name).type)
            for name, field in columns.items()
        }
    )


def run_stream(
    ds: Dataset, ledger: ray.actor.ActorHandle, timeout_s: int, missing: Sequence[str] = ()
) -> Generator[pa.Table, None, None]:
    """The summaries, as the parts are written.

    Args:
        missing: what `check_capacity` found too small at the start, for the message of a stall.

    Raises:
        GmdError: why the run cannot go on, in one line: what a worker left in the ledger, a stall, or Ray's own words.
    """
    try:
        yield from ds.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except (RayError, ExecutionTimeoutError, SystemException) as error:
        reason = None
        with contextlib.suppress(RayError):
            reason = ray.get(ledger.error.remote(), timeout=30)
        if reason is not None:
            raise reason from error
        if isinstance(error, ExecutionTimeoutError):
            small = f" (at the start {'; '.join(missing)})" if missing else ""
            raise GmdError(
                f"no block of images was finished in {timeout_s} s{small}{_at_work(ledger, timeout_s)}; what was "
                f"written stays, and the next run tries what hung alone. Raise "
                f"generation.no_progress_timeout_s where a model load and a block take longer"
            ) from error
        cause = error.cause if isinstance(error, RayTaskError) else error
        raise GmdError(
            f"the stream broke: {type(cause).__name__}: {one_line(cause)}; what is written stays, and the same command "
            f"goes on from there"
        ) from error


def _at_work(ledger: ray.actor.ActorHandle, timeout_s: float) -> str:
    """What the ledger has open as the run ends for a stall, and the next run will suspect; for the message."""
    going: list[AtWork] = []
    with contextlib.suppress(RayError):
        going = ray.get(ledger.stalled.remote(timeout_s * STALLED), timeout=30)
    lines = [
        f"{work.stage.removeprefix(START)} {'is loading' if work.stage.startswith(START) else f'on {work.id}'} "
        f"for {work.seconds:.0f} s"
        for work in going
    ]
    return f"; at work: {', '.join(lines[:SHOWN])}{', ...' * (len(lines) > SHOWN)}" if lines else ""


def model_configs(cfg: Config) -> dict[str, Any]:
    """The models' sections with local paths made absolute: workers need not share the driver's directory."""
    return {
        "student": replace(cfg.student, path=absolute_if_exists(cfg.student.path)),
        "teacher": replace(
            cfg.teacher,
            path=absolute_if_exists(cfg.teacher.path),
            prompt_embeddings=absolute_if_exists(cfg.teacher.prompt_embeddings),
        ),
        "scorer": replace(
            cfg.scorer,
            path=absolute_if_exists(cfg.scorer.path),
            weights=absolute_if_exists(cfg.scorer.weights),
            fidelity_weights=absolute_if_exists(cfg.scorer.fidelity_weights),
        ),
    }


def _pool(ds: Dataset, stage: type, replica: Replica, rows_per_block: int) -> Dataset:
    """One actor pool. It takes whole blocks; the stage itself cuts them into batches of images of one size."""
    pool: PoolConfig = replica.config.pool
    return ds.map_batches(
        stage,
        fn_constructor_args=(replica,),
        batch_size=rows_per_block if pool.num_gpus else None,  # Ray wants a number where GPUs are asked for
        batch_format="pyarrow",
        **actor_pool(pool),
    )

"""The five stages of a run as one Ray Data stream."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence

import pyarrow as pa
import ray
import ray.data
from ray.data import Dataset
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError, RayTaskError

from gmd_ray.config import Config, PoolConfig
from gmd_ray.errors import InterruptedRunError
from gmd_ray.generation.attempts.log import START
from gmd_ray.generation.attempts.remote import RemoteAttemptLog
from gmd_ray.generation.io_stages import input_blocks, read_arguments, read_images, write_arguments, write_rows
from gmd_ray.generation.loading import Replica, replica_of
from gmd_ray.generation.models import Models
from gmd_ray.generation.stages import Project, Restore, Score
from gmd_ray.generation.watchdog import batch_bound
from gmd_ray.images.listing import ImageFile
from gmd_ray.ray_utils.capacity import TASK_CPUS, read_cpus
from gmd_ray.ray_utils.metrics import ActorNames, model_name
from gmd_ray.ray_utils.pools import GROW_AT, actor_pool, options_of_today
from gmd_ray.ray_utils.ray_internals import (
    fetch_metadata_inline,
    limit_blocks_in_flight,
    shorten_reservation_expiry,
)
from gmd_ray.ray_utils.remote_errors import forget_locals
from gmd_ray.text import one_line

STALLED = 0.5
"""An image is suspected of a stall if it has been at work for this share of the time without a finished block."""
DATASET = "gmd_generate"
"""Name of the stream; Ray Data's own metrics have it, with a number behind, as their label `dataset`."""
SHOWN = 4
"""Number of images at work that the message of a stall names."""


def build_stream(
    cfg: Config, files: list[ImageFile], store_url: str, token: str, log: RemoteAttemptLog, models: Models
) -> Dataset:
    """Build the stream from photos to part files, which yields a summary of each part (columns `io_stages.SUMMARY`).

    Ray repeats a task whose worker died for ever (`max_restarts` and `max_task_retries` are -1). That is left so: a
    bound there would fail the whole run, or lose a block of rows. The attempt log bounds the attempts of each row
    instead.
    """
    generation = cfg.generation
    step, bound = generation.rows_per_block, batch_bound(generation)

    # Exact blocks. `from_arrow` would ask a task for the number of rows of each, and slices of one table of all files
    # would hold the driver's memory several times.
    ds = ray.data.from_blocks(input_blocks(files, step))

    # Read and decode on CPU tasks; a file that does not decode is a failed row from here on, and passes all stages.
    ds = ds.map_batches(
        read_images,
        fn_kwargs=read_arguments(cfg, log, bound),
        batch_format="pyarrow",
        num_cpus=read_cpus(cfg.student.pool),
    )
    # Stage 0: the student restores.
    ds = _pool(ds, Restore, replica_of(cfg, "student", models, log, bound), step)
    # Stage 1: the teacher projects.
    ds = _pool(ds, Project, replica_of(cfg, "teacher", models, log, bound), step)
    # Stage 1b: the gate scores.
    ds = _pool(ds, Score, replica_of(cfg, "scorer", models, log, bound), step)
    # Every row is written, whatever its score: a filter here would make each resume project the rejected ones again.
    ds = ds.map_batches(
        write_rows,
        fn_kwargs=write_arguments(cfg, log, store_url, token),
        batch_format="pyarrow",
        num_cpus=TASK_CPUS,
    )
    ds.set_name(DATASET)
    ds.context.execution_no_progress_timeout_s = generation.no_progress_timeout_s
    # A pool shrinks when its input is used up, and never for a lull: a teacher takes minutes to load.
    ds.context.autoscaling_config.actor_pool_util_downscaling_threshold = -1
    ds.context.autoscaling_config.actor_pool_util_upscaling_threshold = GROW_AT
    limit_blocks_in_flight(ds.context, cfg)
    shorten_reservation_expiry()
    fetch_metadata_inline()
    ds.context.enable_progress_bars = False  # they would write over gmd_ray's own
    ds.context.issue_detectors_config.detectors = []  # advice for authors of Ray programs, in a user's log
    return ds


def _pool(ds: Dataset, stage: type[Restore | Project | Score], replica: Replica, rows_per_block: int) -> Dataset:
    """Add a pool of actors that take whole blocks; the stage itself cuts them into batches of images of one size."""
    pool: PoolConfig = replica.config.pool
    with options_of_today():
        return ds.map_batches(
            stage,
            fn_constructor_args=(replica,),
            batch_size=rows_per_block if pool.num_gpus else None,  # Ray wants a number where GPUs are asked for
            batch_format="pyarrow",
            ray_remote_args_fn=ActorNames(stage.name, model_name(replica.config)),
            **actor_pool(pool),
        )


def run_stream(
    ds: Dataset, log: RemoteAttemptLog, timeout_s: int, missing: Sequence[str] = ()
) -> Generator[pa.Table, None, None]:
    """Run the stream, and yield the summary of each part once it is written.

    Args:
        ds: of `build_stream`.
        log: the attempt log of the run.
        timeout_s: `generation.no_progress_timeout_s`.
        missing: what `check_capacity` found too small at the start, for the message of a stall.

    Raises:
        GmdError: why the run cannot go on, in one line. It is what a worker left in the attempt log, else an
            InterruptedRunError: a stall, or Ray's own words.
    """
    before = len(ActorNames.given)
    try:
        yield from ds.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except (RayError, ExecutionTimeoutError, SystemException) as error:
        forget_locals(error)  # a caller that goes on, and starts the next run, needs the room
        reason = log.error()
        if reason is not None:
            raise reason from error
        if isinstance(error, ExecutionTimeoutError):
            told = _at_work(log, timeout_s)
            _end_actors(ActorNames.given[before:])
            small = f" (at the start {'; '.join(missing)})" if missing else ""
            raise InterruptedRunError(
                f"no block of images was finished in {timeout_s} s{small}{told}; what was "
                f"written stays, and the next run tries what hung alone. Raise "
                f"generation.no_progress_timeout_s where a model load and a block take longer"
            ) from error
        cause = error.cause if isinstance(error, RayTaskError) else error
        raise InterruptedRunError(
            f"the stream broke: {type(cause).__name__}: {one_line(cause)}; what is written stays, and the same command "
            f"goes on from there"
        ) from error


def _end_actors(names: Sequence[str]) -> None:
    """End the actors of a stream: Ray waits for what an actor is at, and one that hangs keeps its GPU."""
    for name in names:
        if name.partition("/")[0].partition(".")[0] in (Restore.name, Project.name, Score.name):
            with contextlib.suppress(ValueError):  # it has ended by itself
                ray.kill(ray.get_actor(name))


def _at_work(log: RemoteAttemptLog, timeout_s: float) -> str:
    """Return what is at work as the run ends for a stall, for the message; the next run suspects what is old of it."""
    lines = [
        f"{work.stage.removeprefix(START)} {'is loading' if work.stage.startswith(START) else f'on {work.id}'} "
        f"for {work.seconds:.0f} s"
        for work in log.stalled(timeout_s * STALLED)
    ]
    return f"; at work: {', '.join(lines[:SHOWN])}{', ...' * (len(lines) > SHOWN)}" if lines else ""

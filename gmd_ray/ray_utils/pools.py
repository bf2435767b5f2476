"""The settings of an actor pool (PoolConfig) as options of Ray."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gmd_ray.config import PoolConfig
from gmd_ray.ray_utils.metrics import ActorNames

if TYPE_CHECKING:
    from ray.data import Dataset

BLOCKS_PER_ACTOR = 2
"""Number of blocks that an actor has at a time. The model works on one while the other is decoded or encoded
(`stages._ModelStage`)."""
GROW_AT = 0.875
"""A pool grows once this share of all actors' places for blocks is taken (1.75 blocks an actor, Ray's default)."""


def actor_resources(pool: PoolConfig) -> dict[str, Any]:
    """Return what one actor of a pool, or a task that loads the same model, reserves, as options of `ray.remote`."""
    return {
        "num_cpus": pool.num_cpus,
        "num_gpus": pool.num_gpus or None,
        "resources": pool.resources or None,
        "label_selector": pool.labels or None,
    }


def actor_pool(pool: PoolConfig) -> dict[str, Any]:
    """Return the pool and what each of its actors reserves, as options of `Dataset.map_batches`."""
    from ray.data import ActorPoolStrategy

    sizes = ActorPoolStrategy(
        min_size=pool.min,
        max_size=pool.max,
        initial_size=pool.initial,
        max_tasks_in_flight_per_actor=BLOCKS_PER_ACTOR,
        max_concurrent_calls_per_actor=BLOCKS_PER_ACTOR,
        enable_true_multi_threading=True,  # the stage has a thread of its own for the model
    )
    return {"compute": sizes, **actor_resources(pool)}


@contextlib.contextmanager
def options_of_today() -> Iterator[None]:
    """Leave out Ray's warnings of options that Ray 2.64 removes: names of actors and replaced actors.

    pyproject.toml holds Ray below that until the pools do without them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ray_remote_args", category=DeprecationWarning)
        yield


@contextlib.contextmanager
def restarting_pool(pool: PoolConfig, names: ActorNames, times: int = 2) -> Iterator[dict[str, Any]]:
    """Options of `Dataset.map` and `map_batches` for a pool whose actors are replaced when they die.

    Args:
        pool: its settings.
        names: the names of its actors.
        times: how often Ray replaces a dead actor, and how often it repeats the task that a dead actor was at.
    """
    with options_of_today():
        yield {
            **actor_pool(pool),
            "ray_remote_args_fn": names,
            "max_restarts": times,
            "max_task_retries": times,
        }


def entitle(stream: Dataset, name: str) -> None:
    """Name a stream, and leave its reporting to the caller: no progress bars and issue detectors of Ray Data's own.

    Args:
        stream: the stream.
        name: in Ray Data's metrics the label `dataset` is this, with a suffix.
    """
    stream.set_name(name)
    stream.context.enable_progress_bars = False
    stream.context.issue_detectors_config.detectors = []

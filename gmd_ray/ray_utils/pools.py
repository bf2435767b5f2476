"""What a PoolConfig means to Ray."""

from __future__ import annotations

from typing import Any

from ray.data import ActorPoolStrategy

from gmd_ray.config import PoolConfig

BLOCKS_PER_ACTOR = 2
"""Blocks at an actor at a time: the model is at one, the other is on its way in or out (`stages._ModelStage`)."""
GROW_AT = 0.875
"""Share of all actors' places for blocks that are taken, from which on a pool grows (Ray's 1.75 blocks an actor)."""


def actor_resources(pool: PoolConfig) -> dict[str, Any]:
    """What one actor of a pool, or a task that loads the same model, reserves; options of `ray.remote`."""
    return {
        "num_cpus": pool.num_cpus,
        "num_gpus": pool.num_gpus or None,
        "resources": pool.resources or None,
        "label_selector": pool.labels or None,
    }


def actor_pool(pool: PoolConfig) -> dict[str, Any]:
    """Options of `Dataset.map_batches`: the pool and what each of its actors reserves."""
    sizes = ActorPoolStrategy(
        min_size=pool.min,
        max_size=pool.max,
        initial_size=pool.initial,
        max_tasks_in_flight_per_actor=BLOCKS_PER_ACTOR,
        max_concurrent_calls_per_actor=BLOCKS_PER_ACTOR,
        enable_true_multi_threading=True,  # the stage has a thread of its own for the model
    )
    return {"compute": sizes, **actor_resources(pool)}

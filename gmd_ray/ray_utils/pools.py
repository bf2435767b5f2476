"""The settings of an actor pool (PoolConfig) as options of Ray."""

from __future__ import annotations

from typing import Any

from gmd_ray.config import PoolConfig

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

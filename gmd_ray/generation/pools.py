"""What a PoolConfig means to Ray."""

from __future__ import annotations

from typing import Any

from ray.data import ActorPoolStrategy

from gmd_ray.config import PoolConfig


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
    sizes = ActorPoolStrategy(min_size=pool.min, max_size=pool.max, initial_size=pool.initial)
    return {"compute": sizes, **actor_resources(pool)}

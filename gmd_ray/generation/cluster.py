"""What the stream needs of the cluster, checked before it starts; the one file that looks into Ray's internals."""

from __future__ import annotations

import logging

import ray
from ray._private.state import state
from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.interfaces import PhysicalOperator

from gmd_ray.config import Config, PoolConfig
from gmd_ray.errors import ConfigError

log = logging.getLogger("gmd_ray.generation")

TASK_CPUS = 0.2
"""Of a read or write task: it waits for storage most of the time."""


BLOCKS_AHEAD = 16
"""Blocks that may wait for a stage; more where a pool has more actors."""
_AHEAD_KEY = "gmd_ray.blocks_ahead"


class BlocksAhead(BackpressurePolicy):
    """A stage starts nothing while this many of its blocks wait for the next one.

    Ray bounds what waits by bytes alone, half of the object store: small images would all be read before the first is
    projected, and Ray keeps blocks below 100 kB in the driver's own memory.
    """

    def can_add_input(self, op: PhysicalOperator) -> bool:
        limit = self._data_context.get_config(_AHEAD_KEY, BLOCKS_AHEAD)
        return bool(self._topology[op].total_enqueued_output_blocks() < limit)


def limit_blocks_ahead(context: DataContext, cfg: Config) -> None:
    """Have a stream's stages keep to `BLOCKS_AHEAD`, or to a block for each actor of its largest pool."""
    largest = max(pool.max for pool in (cfg.student.pool, cfg.teacher.pool, cfg.scorer.pool))
    context.set_config(_AHEAD_KEY, max(BLOCKS_AHEAD, largest))
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, BlocksAhead])


def read_cpus(student: PoolConfig) -> float:
    """CPUs of a read task, never equal to those of a student actor: Ray would fuse the two, and decode in the pool."""
    return TASK_CPUS if student.num_cpus != TASK_CPUS else 0.25


def check_capacity(cfg: Config) -> None:
    """See that the smallest pools and one read and one write task fit together.

    Where they do not, the pools take every CPU, no image can be read, and the run waits for ever.

    Raises:
        ConfigError: with the numbers. On a cluster that can grow it is a warning.
    """
    pools = {"student": cfg.student.pool, "teacher": cfg.teacher.pool, "scorer": cfg.scorer.pool}
    for name, pool in pools.items():
        if not 1 <= pool.min <= pool.max:
            raise ConfigError(f"{name}.pool: min={pool.min}, max={pool.max}: 1 <= min <= max")
        if pool.batch_size < 1:
            raise ConfigError(f"{name}.pool.batch_size={pool.batch_size}: at least 1")
    here = {"CPU": read_cpus(cfg.student.pool) + TASK_CPUS}
    has = ray.cluster_resources()
    for kind in dict.fromkeys(kind for pool in pools.values() for kind in reserved(pool)):
        shares = {name: (pool.initial or pool.min, reserved(pool).get(kind, 0.0)) for name, pool in pools.items()}
        need = here.get(kind, 0.0) + sum(actors * each for actors, each in shares.values())
        if need <= has.get(kind, 0):
            continue
        sizes = ", ".join(f"{name} {actors} x {each:g}" for name, (actors, each) in shares.items())
        line = (
            f"the smallest pools need {need:g} {kind}s ({sizes}"
            f"{', reading and writing' if kind in here else ''}), the cluster has {has.get(kind, 0):g}"
        )
        if not _can_grow():
            raise ConfigError(f"{line}; lower <stage>.pool.min, .initial or what each actor takes, or give Ray more")
        log.warning("%s; waiting for it to grow", line)
    _check_nodes(pools)


def _check_nodes(pools: dict[str, PoolConfig]) -> None:
    """See that each of the smallest pools has nodes with its labels that hold its actors, one whole actor on a node."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    for name, pool in pools.items():
        actors, takes = pool.initial or pool.min, {kind: each for kind, each in reserved(pool).items() if each}
        fitting = [node["Resources"] for node in nodes if _labelled(node.get("Labels", {}), pool.labels)]
        room = sum(
            min((int(has.get(kind, 0) / each + 1e-6) for kind, each in takes.items()), default=actors)
            for has in fitting
        )
        if room >= actors:
            continue
        what = ", ".join(f"{each:g} {kind}s" for kind, each in takes.items())
        where = "".join(f" labelled {key}={value}" for key, value in pool.labels.items())
        line = (
            f"{name}.pool: {actors} x {what}, each on one node{where}; {len(fitting)} of {len(nodes)} nodes may take "
            f"them, room for {room}"
        )
        if not _can_grow():
            raise ConfigError(f"{line}; lower {name}.pool.min, .initial or what an actor takes, or give Ray such nodes")
        log.warning("%s; waiting for the cluster to grow", line)


def _labelled(has: dict[str, str], wanted: dict[str, str]) -> bool:
    """Whether a node has these labels; Ray's operators (`!x`, `in(a,b)`) are left to Ray."""
    return all(value.startswith(("!", "in(")) or has.get(key) == value for key, value in wanted.items())


def reserved(pool: PoolConfig) -> dict[str, float]:
    """Ray's name of each resource -> how much of it one actor reserves."""
    return {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}


def _can_grow() -> bool:
    """Whether an autoscaler stands behind the cluster."""
    return state.get_max_resources_from_cluster_config() is not None

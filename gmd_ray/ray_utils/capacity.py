"""Whether the pools of a stream fit on the cluster."""

from __future__ import annotations

import logging
import os

import ray

from gmd_ray.config import Config, PoolConfig
from gmd_ray.errors import ConfigError
from gmd_ray.ray_utils.autoscaling import can_grow as _can_grow
from gmd_ray.ray_utils.autoscaling import started_here

log = logging.getLogger("gmd_ray.generation")

TASK_CPUS = 0.2
"""Of a read or write task: it waits for storage most of the time."""


def read_cpus(student: PoolConfig) -> float:
    """CPUs of a read task, never equal to those of a student actor: Ray would fuse the two, and decode in the pool."""
    return TASK_CPUS if student.num_cpus != TASK_CPUS else 0.25


def check_capacity(cfg: Config) -> list[str]:
    """See that the smallest pools and one read and one write task fit together.

    Where they do not, the pools take every CPU, no image can be read, and the run waits for ever.

    Returns:
        what is missing on a cluster that may grow, a line each; it is warned of, and waited for.

    Raises:
        ConfigError: what is missing on one that cannot.
    """
    missing = []
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
        missing.append(line)
    if started_here() and cfg.ray.num_cpus is None and has.get("CPU", 0) > (os.cpu_count() or 1):
        log.info("%d CPUs shared by pools that want %g; ray.num_cpus says otherwise", os.cpu_count() or 1, has["CPU"])
    missing += _check_nodes(pools)
    for line in missing:
        log.warning(
            "%s; waiting for nodes to be added, for generation.no_progress_timeout_s=%d at most",
            line,
            cfg.generation.no_progress_timeout_s,
        )
    return missing


def _check_nodes(pools: dict[str, PoolConfig]) -> list[str]:
    """See that each of the smallest pools has nodes with its labels that hold its actors, one whole actor on a node."""
    missing = []
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
        missing.append(line)
    return missing


def _labelled(has: dict[str, str], wanted: dict[str, str]) -> bool:
    """Whether a node has these labels; Ray's operators (`!x`, `in(a,b)`) are left to Ray."""
    return all(value.startswith(("!", "in(")) or has.get(key) == value for key, value in wanted.items())


def reserved(pool: PoolConfig) -> dict[str, float]:
    """Ray's name of each resource -> how much of it one actor reserves."""
    return {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}

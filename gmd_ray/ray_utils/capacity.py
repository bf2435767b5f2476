"""Check that the pools of a stream fit on the cluster, before the stream would wait for ever."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gmd_ray.config import Config, PoolConfig
from gmd_ray.config.validate import check_pool
from gmd_ray.errors import ConfigError

log = logging.getLogger("gmd_ray.generation")

TASK_CPUS = 0.2
"""CPUs of a read or write task, which waits for storage most of the time."""


@dataclass(frozen=True)
class Node:
    """One node of a cluster."""

    resources: dict[str, float]
    """Ray's name of each resource -> how much of it the node has, used or not."""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cluster:
    """The resources of a cluster at one moment."""

    resources: dict[str, float]
    """Ray's name of each resource -> how much of it all nodes have together, used or not."""
    nodes: list[Node]
    """Nodes that are alive."""
    can_grow: bool = False
    """True if an autoscaler may add nodes."""
    started_here: bool = False
    """True if this process started the cluster."""


def read_cluster() -> Cluster:
    """Ask Ray, which must be initialised, what its cluster has."""
    import ray

    from gmd_ray.ray_utils.ray_internals import can_grow, started_here

    return Cluster(ray.cluster_resources(), living_nodes(ray.nodes()), can_grow(), started_here())


def living_nodes(nodes: Sequence[Mapping[str, Any]]) -> list[Node]:
    """Return those of `ray.nodes()` that are alive."""
    return [Node(node["Resources"], node.get("Labels") or {}) for node in nodes if node["Alive"]]


def read_cpus(student: PoolConfig) -> float:
    """Return the CPUs of a read task.

    They never equal those of a student actor: Ray would then fuse the two stages, and decode in the pool.
    """
    return TASK_CPUS if student.num_cpus != TASK_CPUS else 0.25


def check_capacity(cfg: Config, cluster: Cluster | None = None) -> list[str]:
    """Check that the smallest pools and one read and one write task fit on the cluster together.

    If they do not, the pools take every CPU, no image can be read, and the run waits for ever. With `ray.enabled=false`
    there is no cluster, and only the settings of the pools are checked.

    Args:
        cfg: the settings of a run.
        cluster: what the cluster has. Default: Ray is asked.

    Returns:
        what is missing on a cluster that may grow, a line each. The lines are logged too, and the run waits for nodes.

    Raises:
        ConfigError: the size of a pool makes no sense, or something is missing on a cluster that cannot grow.
    """
    pools = {"student": cfg.student.pool, "teacher": cfg.teacher.pool, "scorer": cfg.scorer.pool}
    for name, pool in pools.items():
        check_pool(f"{name}.pool", pool)
    if not cfg.ray.enabled:
        return []
    cluster = cluster or read_cluster()
    # 1. The sums over the cluster: all actors of all pools at once, beside one read and one write task.
    missing = _check_sums(cfg, pools, cluster)
    if cluster.started_here and cfg.ray.num_cpus is None:
        cores, told = os.cpu_count() or 1, cluster.resources.get("CPU", 0)
        if told > cores:  # `session.enough_cpus` told Ray of more CPUs than there are
            log.info("%d CPUs shared by pools that want %g; ray.num_cpus says otherwise", cores, told)
    # 2. Each pool on the nodes that may take its actors: an actor does not span two nodes.
    missing += _check_nodes(pools, cluster)
    for line in missing:
        log.warning(
            "%s; waiting for nodes to be added, for generation.no_progress_timeout_s=%d at most",
            line,
            cfg.generation.no_progress_timeout_s,
        )
    return missing


def _check_sums(cfg: Config, pools: dict[str, PoolConfig], cluster: Cluster) -> list[str]:
    """Check each kind of resource against its sum over the cluster; return what is missing, a line each."""
    missing = []
    tasks = {"CPU": read_cpus(cfg.student.pool) + TASK_CPUS}
    for kind in dict.fromkeys(kind for pool in pools.values() for kind in reserved(pool)):
        # Pool -> (actors that it starts with, how much of this resource each takes).
        shares = {name: (_actors(pool), reserved(pool).get(kind, 0.0)) for name, pool in pools.items()}
        need = tasks.get(kind, 0.0) + sum(actors * each for actors, each in shares.values())
        has = cluster.resources.get(kind, 0)
        if need <= has:
            continue
        sizes = ", ".join(f"{name} {actors} x {each:g}" for name, (actors, each) in shares.items())
        line = (
            f"the smallest pools need {need:g} {kind}s ({sizes}"
            f"{', reading and writing' if kind in tasks else ''}), the cluster has {has:g}"
        )
        if not cluster.can_grow:
            raise ConfigError(f"{line}; lower <stage>.pool.min, .initial or what each actor takes, or give Ray more")
        missing.append(line)
    return missing


def _check_nodes(pools: dict[str, PoolConfig], cluster: Cluster) -> list[str]:
    """Check each pool against the nodes with its labels; return what is missing, a line each.

    A node holds as many whole actors as its scarcest resource allows. The pools are looked at one by one: which of them
    takes a node that several could use is left to Ray.
    """
    missing = []
    for name, pool in pools.items():
        actors, takes = _actors(pool), {kind: each for kind, each in reserved(pool).items() if each}
        fitting = [node.resources for node in cluster.nodes if has_labels(node.labels, pool.labels)]
        room = sum(
            # 1e-6: 0.3 / 0.1 is less than 3 in floating point.
            min((int(has.get(kind, 0) / each + 1e-6) for kind, each in takes.items()), default=actors)
            for has in fitting
        )
        if room >= actors:
            continue
        what = ", ".join(f"{each:g} {kind}s" for kind, each in takes.items())
        where = "".join(f" labelled {key}={value}" for key, value in pool.labels.items())
        line = (
            f"{name}.pool: {actors} x {what}, each on one node{where}; {len(fitting)} of {len(cluster.nodes)} nodes "
            f"may take them, room for {room}"
        )
        if not cluster.can_grow:
            raise ConfigError(f"{line}; lower {name}.pool.min, .initial or what an actor takes, or give Ray such nodes")
        missing.append(line)
    return missing


def _actors(pool: PoolConfig) -> int:
    """Return the number of actors that a pool starts with."""
    return pool.initial or pool.min


def has_labels(has: dict[str, str], wanted: dict[str, str]) -> bool:
    """Return whether a node has these labels. Ray's operators (`!x`, `in(a,b)`) are left to Ray, and count as met."""
    return all(value.startswith(("!", "in(")) or has.get(key) == value for key, value in wanted.items())


def reserved(pool: PoolConfig) -> dict[str, float]:
    """Return Ray's name of each resource -> how much of it one actor reserves."""
    return {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}

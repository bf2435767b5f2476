"""What the stream takes of the cluster, and what it needs to start; Ray Data's internals are looked into here alone."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray
from ray.data import DataContext
from ray.data._internal.cluster_autoscaler import RateBasedClusterAutoscaler
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.resource_manager import ResourceManager
from ray.data._internal.execution.streaming_executor_state import Topology
from ray.exceptions import GetTimeoutError

from gmd_ray.autoscaling import can_grow as _can_grow
from gmd_ray.autoscaling import started_here
from gmd_ray.config import Config, PoolConfig
from gmd_ray.config.validate import check_pool
from gmd_ray.errors import ConfigError, GmdError, ModelError
from gmd_ray.generation import stopping
from gmd_ray.generation.pools import BLOCKS_PER_ACTOR

log = logging.getLogger("gmd_ray.generation")

TASK_CPUS = 0.2
"""Of a read or write task: it waits for storage most of the time."""
BLOCKS_AHEAD = 16
"""Blocks of images in flight beyond those that the actors have."""
SHARE_KEPT_S = 30
"""How long a cluster's shares are kept for a run that no longer says that it is there; it does every 10 s."""
_IN_FLIGHT_KEY = "gmd_ray.blocks_in_flight"


class BlocksInFlight(BackpressurePolicy):
    """Nothing more is read while so many blocks are in flight, from the first stage to the last.

    Ray bounds them by bytes alone, and lets go of that bound where no task is running: while the teachers load, block
    after block would be read and restored. Small images would all be read before the first is projected; Ray keeps
    blocks below 100 kB in the driver's own memory.
    """

    def __init__(self, data_context: DataContext, topology: Topology, resource_manager: ResourceManager) -> None:
        super().__init__(data_context, topology, resource_manager)
        [self._read] = (
            op for op in topology if op.input_dependencies and not op.input_dependencies[0].input_dependencies
        )
        # Not `can_add_input` of this policy, which is what Ray lets go of.
        self._read.can_add_input = self.room

        self._later = [state for op, state in topology.items() if op.input_dependencies and op is not self._read]

    def room(self) -> bool:
        if stopping.ASKED.is_set():  # the stream runs dry, and what Ray holds back to make whole blocks of is let go
            for queue in self._topology[self._read].input_queues:
                queue.clear()
            return False
        if self.in_flight() < self._data_context.get_config(_IN_FLIGHT_KEY):
            return True
        # All of it is held back, to make whole blocks of: more is needed.
        return not self._at_work() and not any(state.has_pending_bundles() for state in self._later)

    def in_flight(self) -> int:
        return self._at_work() + sum(state.total_enqueued_input_blocks() for state in self._later)

    def _at_work(self) -> int:
        return sum(op.num_active_tasks() for op in self._topology)


def limit_blocks_in_flight(context: DataContext, cfg: Config) -> None:
    """For a stream over these pools: what their actors have at hand, one more for each, and `BLOCKS_AHEAD`."""
    actors = sum(pool.max for pool in (cfg.student.pool, cfg.teacher.pool, cfg.scorer.pool))
    context.set_config(_IN_FLIGHT_KEY, BLOCKS_AHEAD + actors * (BLOCKS_PER_ACTOR + 1))
    policies = context.get_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, ENABLED_BACKPRESSURE_POLICIES)
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*policies, BlocksInFlight])


def let_go_of_dead_runs() -> None:
    """Make the streams of this process lose their share of the cluster soon after a kill.

    Ray Data divides a cluster among the runs on it, and a busy one reserves all of it. Ray keeps that for three
    minutes after the driver was killed; the same command, given again, would do nothing until then.
    """
    defaults, name = RateBasedClusterAutoscaler.__init__.__kwdefaults__, "autoscaling_request_expire_time_s"
    defaults[name] = min(defaults[name], SHARE_KEPT_S)


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
        check_pool(f"{name}.pool", pool)
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


def answer_of(task: ray.ObjectRef, what: str, timeout_s: int) -> Any:
    """What a task returns that comes before the stream, where nothing else guards against a stall.

    A GmdError is returned by the task, and raised here: raised there it would come back wrapped in a traceback.

    Raises:
        ModelError: no answer in time; `what` says what was not done.
        RayError: the task broke.
    """
    try:
        answer = ray.get(task, timeout=timeout_s)
    except GetTimeoutError as error:
        ray.cancel(task, force=True)
        raise ModelError(
            f"{what} in generation.no_progress_timeout_s={timeout_s}; see that the cluster has room, or raise that"
        ) from error
    if isinstance(answer, GmdError):
        raise answer
    return answer


def reserved(pool: PoolConfig) -> dict[str, float]:
    """Ray's name of each resource -> how much of it one actor reserves."""
    return {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}

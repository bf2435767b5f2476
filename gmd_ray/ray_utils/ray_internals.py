"""Everything that touches private names of Ray Data; imported when a stream is built, not before."""

from __future__ import annotations

from ray.data import DataContext
from ray.data._internal.cluster_autoscaler import RateBasedClusterAutoscaler
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.resource_manager import ResourceManager
from ray.data._internal.execution.streaming_executor_state import Topology

from gmd_ray.config import Config
from gmd_ray.ray_utils import shutdown
from gmd_ray.ray_utils.pools import BLOCKS_PER_ACTOR

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
        if shutdown.ASKED.is_set():  # the stream runs dry, and what Ray holds back to make whole blocks of is let go
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

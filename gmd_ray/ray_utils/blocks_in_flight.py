"""A bound on the blocks of a stream that are in flight, as a backpressure policy of Ray Data.

Ray has no public way to add such a policy, so this module imports private names; `ray_internals.limit_blocks_in_flight`
imports it late, and a stream runs without the bound where a name is gone.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)

from gmd_ray.ray_utils import shutdown
from gmd_ray.ray_utils.rescue import BlockRescue

log = logging.getLogger("gmd_ray.generation")

_LIMIT_KEY = "gmd_ray.blocks_in_flight"


class BlocksInFlight(BackpressurePolicy):
    """Reads nothing more while as many blocks as the limit are in flight, from the first stage to the last.

    Ray bounds blocks by their bytes alone, and drops that bound where no task is running. While the teachers load,
    block after block would be read and restored. Small images would all be read before the first is projected: Ray
    keeps blocks below 100 kB in the driver's own memory, where its bound does not count them.
    """

    def __init__(self, data_context: DataContext, topology: Any, resource_manager: Any) -> None:
        """Put the bound on the first stage of a stream that begins.

        Args:
            data_context: the stream's context, which holds the limit.
            topology: operator -> state of the operator, from the input to the last stage.
            resource_manager: of Ray; not used.
        """
        super().__init__(data_context, topology, resource_manager)
        self._limit = int(data_context.get_config(_LIMIT_KEY))
        self._rescue = BlockRescue(topology)
        # The first stage is the one whose only input is the operator that has no input itself.
        [self._read] = (
            op for op in topology if op.input_dependencies and not op.input_dependencies[0].input_dependencies
        )
        self._later = [state for op, state in topology.items() if op.input_dependencies and op is not self._read]
        needed = [(op, "num_active_tasks") for op in topology]
        needed += [
            (state, name) for state in self._later for name in ("total_enqueued_input_blocks", "has_pending_bundles")
        ]
        absent = sorted({name for owner, name in needed if not hasattr(owner, name)})
        if absent:
            log.warning("the blocks in flight are not bounded with this version of Ray (no %s)", ", ".join(absent))
            return
        # The operator's own method, not `can_add_input` of this policy, which Ray ignores where no task is running.
        self._read.can_add_input = self.room

    def can_add_input(self, op: Any) -> bool:
        """See the base class: nothing is held back here. Ray asks this for each operator, many times in a second."""
        self._rescue.look()
        return True

    def room(self) -> bool:
        """Return whether the first stage may take another block. Ray asks before it starts each read task."""
        # 1. The run is to end: nothing more is read. The waiting inputs are dropped, so that Ray takes the stream for
        #    complete and hands on the rows that it holds back to make whole blocks.
        if shutdown.ASKED.is_set():
            for queue in self._topology[self._read].input_queues:
                queue.clear()
            return False
        # 2. Fewer blocks than the limit are in flight.
        if self.in_flight() < self._limit:
            return True
        # 3. The limit is reached, but no task runs and no stage has a block to take: all blocks in flight are parts
        #    that Ray holds back until they make a whole block. Only more reading completes one.
        return not self._at_work() and not any(state.has_pending_bundles() for state in self._later)

    def in_flight(self) -> int:
        """Return the number of blocks at work in all stages and waiting before all but the first.

        A task that has handed out its block and not yet ended counts beside its block for a moment.
        """
        return self._at_work() + sum(state.total_enqueued_input_blocks() for state in self._later)

    def _at_work(self) -> int:
        return sum(op.num_active_tasks() for op in self._topology)


def limit_blocks(context: DataContext, blocks: int) -> None:
    """Add the policy with this limit to those of a stream that has not begun."""
    context.set_config(_LIMIT_KEY, blocks)
    policies = context.get_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, ENABLED_BACKPRESSURE_POLICIES)
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*policies, BlocksInFlight])

"""Copies of a stream's blocks that lie on a node that is to go, so that they need not be made again.

Ray keeps a block in the object store of the node where it was made, until the next stage fetches it. If the node dies
before that, Ray makes the block again, and whatever it was made of.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from gmd_ray.ray_utils.draining import POLL_S, draining_nodes

log = logging.getLogger("gmd_ray.generation")

FETCH_S = 10.0
"""Time for a round of copies, in seconds; what was not copied in it is tried again."""


class BlockRescue:
    """Fetches waiting blocks of which no other node has a copy to the driver's node."""

    def __init__(self, topology: Any) -> None:
        """Take the topology of a stream: operator -> state of the operator. Its private names are looked up here."""
        self._topology = topology
        self._next = 0.0
        self._round: threading.Thread | None = None

    def look(self) -> None:
        """Start a round of copies if there is a node that is to go. Only the thread of the stream may call this."""
        now = time.monotonic()
        if now < self._next or (self._round and self._round.is_alive()):
            return
        self._next = now + POLL_S
        try:
            going = draining_nodes()
            blocks = waiting_blocks(self._topology) if going else []
        except (ImportError, AttributeError) as error:
            log.warning("what is on a drained node is lost with it with this version of Ray (%s)", error)
            self._next = float("inf")
            return
        except Exception:  # noqa: BLE001 -- the cluster's head is away for a while; the next look may tell
            return
        if blocks:
            self._round = threading.Thread(target=fetch, args=(blocks, going), name="gmd-rescue", daemon=True)
            self._round.start()


def waiting_blocks(topology: Any) -> list[Any]:
    """Return the references of all blocks that wait before an operator or within it, or that its tasks are given.

    A task that is repeated elsewhere needs its blocks again.
    """
    found = []
    for op, state in topology.items():
        queues = [queue._inner for buffer in state.input_queues for queue in buffer._queues]
        queues += [*getattr(op, "_input_queues", []), *getattr(op, "_output_queues", [])]
        bundles = [bundle for queue in queues for bundle in _bundles(queue)]
        bundles += [task.inputs for task in op.metrics._running_tasks.values()]
        found += [block.ref for bundle in bundles for block in bundle.blocks]
    return found


def _bundles(queue: Any) -> Iterator[Any]:
    """Yield the bundles of a queue of Ray Data, of whatever kind."""
    if isinstance(queue, Iterable):
        yield from queue
    elif hasattr(queue, "_pending_bundles"):  # one that makes larger bundles of small ones
        yield from [*queue._pending_bundles, *queue._ready_bundles]
    else:  # one that keeps an order: key -> bundles
        for bundles in queue._inner.values():
            yield from bundles


def fetch(blocks: list[Any], going: set[str]) -> None:
    """Copy the blocks that lie only on nodes that are to go to the node of this process."""
    import ray

    try:
        places = ray.experimental.get_object_locations(blocks, timeout_ms=int(FETCH_S * 1000))
        alone = [block for block, place in places.items() if place["node_ids"] and set(place["node_ids"]) <= going]
        if alone:
            done, _ = ray.wait(alone, num_returns=len(alone), timeout=FETCH_S, fetch_local=True)
            log.info("%d of %d blocks copied from nodes that are to go", len(done), len(alone))
    except Exception as error:  # noqa: BLE001 -- the stream may end meanwhile, or the node; its blocks are made again
        log.debug("blocks on a drained node: %r", error)

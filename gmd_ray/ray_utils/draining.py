"""Notice of a node that is to go: a spot node that its cloud takes back, or a pod that Kubernetes ends."""

from __future__ import annotations

import threading
from collections.abc import Callable

from gmd_ray.ray_utils import ray_internals

POLL_S = 2.0
"""Time between two looks at the cluster's account of its nodes, in seconds. A cloud may give a notice of 15 s."""


def watch_this_node(tell: Callable[[], None]) -> None:
    """Call a function, in a thread of its own, once the node of this process is to go (`ray drain-node`).

    Nothing is watched outside of Ray, nor on the head of a cluster, which ends with it: so a cluster of one node, and
    a private session, pay nothing.
    """
    import ray

    if not ray.is_initialized() or ray_internals.on_head_node():
        return
    node = ray.get_runtime_context().get_node_id()
    watch(lambda: node in ray_internals.draining_nodes(), tell)


def watch(draining: Callable[[], bool], tell: Callable[[], None], poll_s: float = POLL_S) -> threading.Thread:
    """Ask `draining` in a thread until it says yes, and then call `tell`."""

    def look() -> None:
        while not _ask(draining):
            pause.wait(poll_s)
        tell()

    pause = threading.Event()
    thread = threading.Thread(target=look, name="gmd-drain", daemon=True)
    thread.start()
    return thread


def _ask(draining: Callable[[], bool]) -> bool:
    try:
        return draining()
    except Exception:  # noqa: BLE001 -- the head is away for a while, or this process ends; the next look may tell
        return False

"""Notice of a node that is to go: a spot node that its cloud takes back, or a pod that Kubernetes ends.

Ray has no public name for it. Where a version of Ray has other private ones, no worker hears of it, and a warning of
`rescue` says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

POLL_S = 2.0
"""Time between two looks at the cluster's account of its nodes, in seconds. A cloud may give a notice of 15 s."""


def watch_this_node(tell: Callable[[], None]) -> None:
    """Call a function, in a thread of its own, once the node of this process is to go (`ray drain-node`).

    Nothing is watched outside of Ray, nor on the head of a cluster, which ends with it: so a cluster of one node, and
    a private session, pay nothing.
    """
    import ray

    if not ray.is_initialized() or on_head_node():
        return
    node = ray.get_runtime_context().get_node_id()
    watch(lambda: node in draining_nodes(), tell)


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


def on_head_node() -> bool:
    """Return whether this process, which has joined a cluster, runs on its head. False if Ray does not say."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    try:
        from ray._common.constants import HEAD_NODE_RESOURCE_NAME
    except ImportError:
        return False
    return any(node["NodeID"] == here and HEAD_NODE_RESOURCE_NAME in node["Resources"] for node in ray.nodes())


def draining_nodes() -> set[str]:
    """Return the ids of the nodes of this process's cluster that are to go.

    Raises:
        ImportError, AttributeError: this version of Ray does not say.
        RayError and others: the cluster's head does not answer.
    """
    from ray._private.state import state

    return set(state.get_draining_nodes())

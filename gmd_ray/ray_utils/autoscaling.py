"""Whether a cluster that is too small today may be larger tomorrow, for the stages that wait for it."""

from __future__ import annotations

import json
from typing import Any


def started_here() -> bool:
    """Whether this process has started the cluster."""
    import ray._private.worker

    node = ray._private.worker._global_node
    return node is not None and bool(node.is_head())


def can_grow() -> bool:
    """Whether an autoscaler may stand behind the cluster that this process has joined.

    Ray does not say. What `ray.init` started here has none; elsewhere the head's monitor, where it has nothing to grow,
    reports each node as a type of its own, `node_<id>`.
    """
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    if started_here():
        return False
    said: dict[str, Any] = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    kinds = (said.get("autoscaler_report") or {}).get("active_nodes") or {}
    return not kinds or not all(kind.startswith("node_") for kind in kinds)

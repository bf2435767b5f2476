"""The way in which the workers of a fine-tune find each other."""

from __future__ import annotations

import ipaddress
import logging

import ray
from ray.train.torch import TorchConfig

log = logging.getLogger("gmd_ray.training")


def torch_config() -> TorchConfig:
    """Ray Train's settings for the process group of a fine-tune on the cluster that this process has joined."""
    nodes = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    if not all(ipaddress.ip_address(node).is_loopback for node in nodes):
        return TorchConfig()
    try:
        from gmd_ray.training.loopback import LoopbackConfig
    except ImportError as error:
        log.warning("with this version of Ray the workers listen on all interfaces while they train (%s)", error)
        return TorchConfig()
    return LoopbackConfig()

"""What Stage 2 asks of the cluster, and what is said while it waits for it.

`resources_wanted` needs no Ray; the rest looks at the cluster that this process has joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gmd_ray.config import Config
from gmd_ray.errors import ConfigError
from gmd_ray.ray_utils.ray_internals import can_grow


def resources_wanted(cfg: Config) -> dict[str, float]:
    """What `finetune` and `pretrain` ask for.

    Returns:
        `min_workers` and `max_workers`, and what each worker takes of one node: `CPU`, and `GPU` where it takes one.
    """
    t = cfg.training
    least = t.num_workers if t.min_workers is None else t.min_workers
    gpu = {"GPU": 1.0} if t.use_gpu else {}
    return {"min_workers": least, "max_workers": t.num_workers, "CPU": t.cpus_per_worker, **gpu}


def worker_resources(cfg: Config) -> dict[str, float]:
    """Ray's name of each resource -> how much of it one worker takes."""
    wanted = resources_wanted(cfg)
    return {kind: wanted[kind] for kind in ("CPU", "GPU") if kind in wanted}


def missing_resources(cfg: Config, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """What keeps the least number of workers from starting, in words; None where they can.

    Args:
        nodes: all resources of each node, used or not.
    """
    least, takes = int(resources_wanted(cfg)["min_workers"]), worker_resources(cfg)
    room = sum(
        min((int(node.get(kind, 0.0) / each + 1e-6) for kind, each in takes.items() if each), default=least)
        for node in nodes
    )
    if room >= least:
        return None
    has = ", ".join(f"{sum(node.get(kind, 0.0) for node in nodes):g} {kind}" for kind in reversed(list(takes)))
    spread = f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
    return f"{least} worker(s) x {_braced(takes)}: the cluster has {has}{spread}, room for {room}"


def check_resources(cfg: Config) -> None:
    """See that the workers can start on this cluster, or that it may grow until they can.

    Raises:
        ConfigError: it can never hold them.
    """
    missing = missing_resources(cfg, cluster_nodes())
    if missing and not can_grow():
        t = cfg.training
        settings = ["training.use_gpu=false"] if t.use_gpu else []
        settings += ["fewer training.num_workers" if t.min_workers is None else "fewer training.min_workers"]
        raise ConfigError(
            f"Stage 2 needs {missing}, and it cannot grow; set {', '.join(settings)} or a lower "
            f"training.cpus_per_worker={t.cpus_per_worker:g}, or give Ray more"
        )


def cluster_nodes() -> list[dict[str, float]]:
    """All resources of each node that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def waiting_for(cfg: Config) -> str:
    """What the workers of a fine-tune that was begun, and has not come to its first step, are waiting for, in words."""
    import ray
    from ray.util import placement_group_table

    missing = missing_resources(cfg, cluster_nodes())
    if missing is not None:
        return f"waiting for {missing}"
    takes = {kind: each for kind, each in worker_resources(cfg).items() if each}
    groups = [
        group
        for group in placement_group_table().values()
        if takes in group["bundles"].values() and group["state"] != "REMOVED"
    ]
    if any(group["state"] == "CREATED" for group in groups):
        return "workers starting"
    if not groups:
        return "starting"
    free = ", ".join(f"{ray.available_resources().get(kind, 0.0):g} {kind}" for kind in reversed(list(takes)))
    return f"waiting for {int(resources_wanted(cfg)['min_workers'])} worker(s) x {_braced(takes)}: {free} free"


def _braced(takes: Mapping[str, float]) -> str:
    return f"{{{', '.join(f'{kind}: {each:g}' for kind, each in reversed(list(takes.items())))}}}"

"""The resources that Stage 2 needs of a cluster, and the messages while it waits for them.

`resources_wanted` needs no Ray; the other functions look at the cluster that this process has joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gmd_ray.config import Config
from gmd_ray.errors import ConfigError
from gmd_ray.ray_utils.capacity import has_labels, living_nodes
from gmd_ray.ray_utils.ray_internals import can_grow


def resources_wanted(cfg: Config) -> dict[str, float]:
    """The workers and resources that `finetune` and `pretrain` need.

    Returns:
        `min_workers` and `max_workers`, and the share of one node that each worker takes: `CPU`, and `GPU` if it uses
        one.
    """
    t = cfg.training
    least = t.num_workers if t.min_workers is None else t.min_workers
    gpu = {"GPU": 1.0} if t.use_gpu else {}
    return {"min_workers": least, "max_workers": t.num_workers, "CPU": t.cpus_per_worker, **gpu}


def worker_resources(cfg: Config) -> dict[str, float]:
    """The resources that one worker takes, by Ray's names."""
    wanted = resources_wanted(cfg)
    return {kind: wanted[kind] for kind in ("CPU", "GPU") if kind in wanted}


def missing_resources(cfg: Config, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Say why the smallest allowed number of workers cannot start; None if it can.

    Args:
        nodes: the total resources of each node with `training.labels`, whether in use or not.
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
    where = "".join(f" labelled {key}={value}" for key, value in cfg.training.labels.items())
    return f"{least} worker(s) x {_braced(takes)}{where}: the cluster has {has}{spread}, room for {room}"


def check_resources(cfg: Config) -> None:
    """Check that the workers can start on this cluster, or that it may grow until they can.

    Raises:
        ConfigError: the cluster can never hold the workers.
    """
    missing = missing_resources(cfg, cluster_nodes(cfg.training.labels))
    if missing and not can_grow():
        t = cfg.training
        settings = ["training.use_gpu=false"] if t.use_gpu else []
        settings += ["fewer training.num_workers" if t.min_workers is None else "fewer training.min_workers"]
        raise ConfigError(
            f"Stage 2 needs {missing}, and it cannot grow; set {', '.join(settings)} or a lower "
            f"training.cpus_per_worker={t.cpus_per_worker:g}, or give Ray more"
        )


def cluster_nodes(labels: dict[str, str]) -> list[dict[str, float]]:
    """The total resources of each node that is alive and has these labels."""
    import ray

    return [node.resources for node in living_nodes(ray.nodes()) if has_labels(node.labels, labels)]


def waiting_for(cfg: Config) -> str:
    """Say what a fine-tune waits for between its start and its first step."""
    import ray
    from ray.util import placement_group_table

    missing = missing_resources(cfg, cluster_nodes(cfg.training.labels))
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

"""A run on three pretended nodes, of which processes and one node are killed.

python -m tests.generation.faults.chaos ROOT SEED; prints what was killed, one line each, and the books.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import ray
from ray._private.utils import get_ray_address_file
from ray.cluster_utils import Cluster

from gmd_ray.config import PoolConfig
from gmd_ray.generation import generate
from tests.generation.world import World

NODE = {"num_cpus": 2, "object_store_memory": 150_000_000}
KILLS = 8


def victims(cluster: Cluster) -> list[psutil.Process]:
    """Every process of the cluster that works: actors of the pools, the ledger, tasks."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()]
    children = [child for pid in raylets for child in psutil.Process(pid).children()]
    spared = ("IDLE", "Agent")  # the agents are the node's own: it goes with them
    at_work = [p for p in children if title(p).startswith("ray::") and not any(word in title(p) for word in spared)]
    return sorted(at_work, key=lambda process: process.pid)


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def main() -> None:
    root, seed = Path(sys.argv[1]), int(sys.argv[2])
    rng = random.Random(seed)
    world = World(root, on_ray=True)
    world.cfg.teacher.pool = PoolConfig(min=1, max=3, num_cpus=0.5, batch_size=4)
    world.cfg.student.pool = PoolConfig(min=1, max=2, num_cpus=0.5, batch_size=4)
    os.makedirs(os.path.dirname(get_ray_address_file(None)), exist_ok=True)  # Cluster leaves its address there
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**NODE, "include_dashboard": False, "temp_dir": tempfile.mkdtemp(prefix="gmd-", dir="/tmp")},
    )
    nodes = [cluster.add_node(**NODE) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)

    result: dict[str, object] = {}

    def run() -> None:
        try:
            result["books"] = generate(world.cfg, models=world.models(seconds=0.5))
        except BaseException as error:  # noqa: BLE001 -- told by the main thread
            result["error"] = error

    thread = threading.Thread(target=run)
    thread.start()
    rows = root / "run" / "pairs" / "rows"
    while thread.is_alive() and not list(rows.glob("part-*")):  # the pools are up
        time.sleep(0.2)
    for number in range(KILLS):
        time.sleep(rng.uniform(1, 4))
        if not thread.is_alive():
            break
        if number == 2:
            node = nodes.pop(rng.randrange(len(nodes)))
            cluster.remove_node(node, allow_graceful=False)
            print("killed a node", flush=True)
            nodes.append(cluster.add_node(**NODE))
        elif found := victims(cluster):
            victim = rng.choice(found)
            print(f"killed {title(victim)}", flush=True)
            victim.kill()
    thread.join()
    if "error" in result:
        raise SystemExit(f"{type(result['error']).__name__}: {result['error']}")
    print(result["books"], flush=True)
    ray.shutdown()
    cluster.shutdown()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

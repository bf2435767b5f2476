"""A run on pretended nodes, one of which is drained while its teacher works, and killed at the deadline.

python -m tests.generation.faults.drained ROOT MODELS IMAGES NOTICE_S SECONDS: the folder of the photos, the folder of
student and scorer, and SECONDS for a batch; prints JSON.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private.utils import get_ray_address_file
from ray.cluster_utils import Cluster

from gmd_ray.config import PoolConfig
from gmd_ray.generation import generate
from tests.generation.faults import logged_student
from tests.generation.world import World, wait_for

NODE = {"num_cpus": 2, "object_store_memory": 150_000_000}
BATCH = 2


def main() -> None:
    root, models, images, notice_s, seconds = Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:])
    world = World(root, models, on_ray=True)
    world.cfg.target.limit = int(images)
    world.cfg.student.factory = f"{logged_student.__name__}:load_logged_student"
    world.cfg.student.pool = PoolConfig(num_cpus=0.5, batch_size=4, resources={"student": 1})
    world.cfg.teacher.pool = PoolConfig(min=2, max=2, num_cpus=0.5, batch_size=BATCH, resources={"teacher": 1})
    os.makedirs(os.path.dirname(get_ray_address_file(None)), exist_ok=True)  # Cluster leaves its address there
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**NODE, "include_dashboard": False, "temp_dir": tempfile.mkdtemp(prefix="gmd-", dir="/tmp")},
    )
    going = cluster.add_node(**NODE, resources={"student": 1, "teacher": 1})
    cluster.add_node(**NODE, resources={"teacher": 1})
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    result: dict[str, Any] = {}
    students_log = logged_student.log_of(world.cfg.student)
    students_log.unlink(missing_ok=True)

    def run() -> None:
        try:
            result["books"] = generate(world.cfg, models=world.models(seconds=seconds)).counts()
        except BaseException as error:  # noqa: BLE001 -- told by the main thread
            result["error"] = f"{type(error).__name__}: {error}"

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: "error" in result or (len(teachers(world)) == 2 and bool(written(world))), 400)
    if "error" in result:
        raise SystemExit(result["error"])
    cluster.add_node(**NODE, resources={"student": 1, "teacher": 1})  # room for those that move
    [old] = children(going) & teachers(world)
    result["begun_before"] = len(world.projected())
    result["restored_before"] = len(set(students_log.read_text().split()))
    drain(cluster.address, going.node_id, notice_s)
    deadline = time.monotonic() + notice_s
    while time.monotonic() < deadline:
        time.sleep(0.1)
    result["left_before_the_deadline"] = old not in children(going)
    result["others_there"] = [title for title in titles(going) if title.startswith("ray::")]
    result["written"] = sorted(written(world))
    result["begun_by_the_old"] = (world.log / str(old)).read_text().split("\n")[:-1]
    cluster.remove_node(going, allow_graceful=False)
    thread.join()
    result["begun"] = world.projected()
    result["restored"] = Counter(students_log.read_text().split())
    result["teachers"] = len(teachers(world))
    print(json.dumps(result, default=str), flush=True)
    ray.shutdown()
    cluster.shutdown()
    sys.stdout.flush()
    os._exit(0)


def drain(address: str, node_id: str, notice_s: float) -> None:
    """Do what a preStop hook does (`cluster/kuberay/base/drain.sh`)."""
    command = ["ray", "drain-node", "--address", address, "--node-id", node_id, "--reason-message", "test"]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds", str(int(notice_s))]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def teachers(world: World) -> set[int]:
    """Process ids of the teachers that have begun a batch."""
    return {int(file.name) for file in world.log.glob("[0-9]*")}


def written(world: World) -> set[str]:
    """Ids of the rows in the store."""
    rows = Path(world.store, "rows")
    return set(world.rows()) if list(rows.glob("part-*")) else set()


def processes(node: Any) -> list[psutil.Process]:
    """Processes of actors, tasks and agents on a node. None if it has ended by itself, as Ray lets an idle one do."""
    try:
        children = psutil.Process(node.all_processes["raylet"][0].process.pid).children()
    except psutil.NoSuchProcess:
        return []
    return [process for process in children if process.status() != psutil.STATUS_ZOMBIE]


def children(node: Any) -> set[int]:
    return {process.pid for process in processes(node)}


def titles(node: Any) -> list[str]:
    return [" ".join(process.cmdline()).strip() for process in processes(node)]


if __name__ == "__main__":
    main()

"""A run on a cluster whose one node has no GPU, before an autoscaler that may add two that have one in name.

python -m tests.generation.faults.growing ROOT; prints the GPUs of each node before and after, and the books, as JSON.
The nodes are processes of this machine (Ray's `fake_multinode`), the autoscaler is Ray's own.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util import get_node_ip_address

from gmd_ray.config import PoolConfig
from gmd_ray.generation import generate
from tests.generation.world import World

LARGEST = 2
HEAD = "ray.head.default"  # the provider knows no other name


def cluster_config(gcs: str, largest: int, idle_minutes: float) -> dict[str, Any]:
    """Settings of a cluster, as `ray up` takes them."""
    groups = {
        HEAD: {"resources": {"CPU": 3}, "node_config": {}, "max_workers": 0},
        "gpu": {
            "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 150_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": largest,
        },
    }
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "growing",
        "max_workers": largest,
        "idle_timeout_minutes": idle_minutes,
        "upscaling_speed": 10,
        "provider": {"type": "fake_multinode", "gcs_address": gcs, "use_node_id_as_ip": True},
        "available_node_types": groups,
        "head_node_type": HEAD,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "rsync_exclude": [],
        **{f"{command}_commands": [] for command in commands},
    }


def gpus() -> list[int]:
    return sorted(int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"])


@contextmanager
def cluster(largest: int, idle_minutes: float = 5) -> Iterator[str]:
    """A cluster of one node without a GPU, and Ray's autoscaler, which may add `largest` nodes of one GPU each.

    Yields the folder of its logs; this process has joined it.
    """
    place = tempfile.mkdtemp(prefix="gmd-", dir="/tmp")  # short: Ray's sockets live below it
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = int(listener.getsockname()[1])
    address = f"{get_node_ip_address()}:{port}"
    Path(place, "cluster.yaml").write_text(json.dumps(cluster_config(address, largest, idle_minutes)))
    command = ["ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=3", "--num-gpus=0"]
    command += [f"--temp-dir={place}", f"--autoscaling-config={place}/cluster.yaml"]
    command += ["--include-dashboard=false", "--object-store-memory=200000000"]
    env = {**os.environ, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    with open(f"{place}/head.log", "w") as out:
        head = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        connect(address, head)
        yield place
        ray.shutdown()
    finally:
        end(head, place)


def main() -> None:
    world = World(Path(sys.argv[1]), on_ray=True)
    world.cfg.teacher.pool = PoolConfig(min=1, max=LARGEST, num_cpus=0.2, num_gpus=1, batch_size=1)
    world.cfg.generation.rows_per_block = 1
    world.cfg.generation.no_progress_timeout_s = 300
    with cluster(LARGEST):
        before = gpus()
        books = generate(world.cfg, models=world.models(seconds=2.0))
        print(json.dumps({"before": before, "after": gpus(), "books": asdict(books)}, default=str))


def connect(address: str, head: subprocess.Popen[bytes]) -> None:
    for _ in range(60):
        time.sleep(1)
        assert head.poll() is None, "the head did not start"
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError):
            continue
        return
    raise SystemExit("no cluster within a minute")


def end(head: subprocess.Popen[bytes], place: str) -> None:
    """The head and whatever it and its autoscaler started: all of it names the place."""
    head.terminate()
    try:
        head.wait(30)
    except subprocess.TimeoutExpired:
        head.kill()
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(place in word for word in process.cmdline()):
                process.kill()
        except psutil.Error:
            continue
    shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()

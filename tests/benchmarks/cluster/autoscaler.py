"""A backlog on a cluster that grows: nodes come, one is killed and replaced, and all go when they are idle.

python -m tests.benchmarks.cluster.autoscaler --out DIR

Ray's autoscaler adds pretended nodes (`fake_multinode`): each is a process of this machine with one GPU in name, and
its teacher sleeps in the place of work. Writes timeline.csv, timeline.json and timeline.svg.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import ray

from gmd_ray.config import PoolConfig
from gmd_ray.generation import Models, generate
from tests.benchmarks.cluster.timeline import Timeline, draw
from tests.benchmarks.timed import Calls, TimedTeacherSpec
from tests.generation.faults.growing import cluster
from tests.generation.world import World, wait_for

SAMPLE_S = 0.5
STEADY_S = 20.0
"""Time for which all nodes work before one is killed, in seconds."""


class Watch:
    """Counts the nodes with a GPU, from a thread, until it is stopped."""

    def __init__(self) -> None:
        self.nodes: list[tuple[float, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stop.is_set():
            self.nodes.append((time.time(), len(gpu_nodes())))
            self._stop.wait(SAMPLE_S)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def gpu_nodes() -> list[str]:
    """Ids of the nodes that are alive and have a GPU in name."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]


def kill_node(node_id: str) -> None:
    """Kill a node's raylet without notice; its workers end with it."""
    for process in psutil.process_iter():
        try:
            if process.name() == "raylet" and process.environ().get("RAY_OVERRIDE_NODE_ID_FOR_TESTING") == node_id:
                process.kill()
                return
        except psutil.Error:
            continue
    raise SystemExit(f"no raylet of node {node_id}")


def drive(root: Path, images: int, seconds: float, largest: int, idle_s: float) -> Timeline:
    """Run the backlog, kill a node in its midst, and watch until all nodes are gone."""
    world = World(root, on_ray=True).build(images)
    world.cfg.teacher.pool = PoolConfig(min=1, max=largest, num_cpus=0.2, num_gpus=1, batch_size=2)
    world.cfg.generation.rows_per_block = 2
    world.cfg.generation.no_progress_timeout_s = 300
    spec = TimedTeacherSpec(str(world.log), latency=seconds)
    events: list[tuple[float, str]] = []
    with cluster(largest, idle_s / 60):
        watch = Watch()
        begin = time.time()

        def kill() -> None:
            wait_for(lambda: len(gpu_nodes()) == largest and len(list(world.log.iterdir())) >= largest, 300)
            time.sleep(STEADY_S)
            kill_node(gpu_nodes()[0])
            events.append((time.time(), "a node is killed"))

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        books = generate(world.cfg, models=Models(teacher=spec))
        events.append((time.time(), "the run ends"))
        assert len(events) == 2, "the run was over before a node was killed"
        assert (books.ok, books.failed) == (images, 0)
        wait_for(lambda: not gpu_nodes(), 60 + 3 * idle_s)
        time.sleep(3)
        watch.stop()
    calls = [call for of in Calls(world.log).by_worker.values() for call in of]
    return Timeline.of(begin, watch.nodes, calls, events)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for what is written")
    parser.add_argument("--images", type=int, default=330)
    parser.add_argument("--seconds", type=float, default=1.0, help="time of the teacher for an image")
    parser.add_argument("--nodes", type=int, default=3, help="how many the autoscaler may add")
    parser.add_argument("--idle", type=float, default=15, help="seconds after which an idle node goes")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as root:
        timeline = drive(Path(root), args.images, args.seconds, args.nodes, args.idle)
    timeline.write(args.out)
    draw(timeline, args.out / "timeline.svg", args.nodes)
    print(json.dumps(timeline.summary()))


if __name__ == "__main__":
    main()

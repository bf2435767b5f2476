"""A driver with a Ray that has GPUs in name: python -m tests.generation.faults.drive_sharded ROOT FLUX TEMP_DIR"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray
import torch

from gmd_ray.config import InjectionConfig, PoolConfig, TeacherConfig
from gmd_ray.generation import Models, generate
from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.multi_gpu.teacher import ShardedTeacher
from tests.generation.world import World, wait_for
from tests.teachers.multi_gpu.shards import alive

RANKS = 2


@dataclass(frozen=True)
class WatchedTeacher:
    """Loads a sharded teacher that leaves the processes of its ranks in a log, and loses one on a certain image."""

    log: str
    victim: str

    def __call__(self, cfg: TeacherConfig) -> Watched:
        return Watched(self, cfg)


class Watched:
    def __init__(self, spec: WatchedTeacher, cfg: TeacherConfig) -> None:
        teacher = load_teacher(cfg)
        assert isinstance(teacher, ShardedTeacher)
        self.spec, self.teacher, self.fingerprint = spec, teacher, teacher.fingerprint
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        Path(spec.log, f"replica-{os.getpid()}.json").write_text(json.dumps({"pids": teacher.pids, "gpus": gpus}))

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        self._wait_for_another()
        mark = Path(self.spec.log, "killed")
        if self.spec.victim in ids and not mark.exists():
            mark.touch()
            rank = self.teacher.pids[1]
            assert rank is not None
            os.kill(rank, signal.SIGSTOP)  # so that the batch is under way, and stays so
            threading.Timer(0.5, os.kill, (rank, signal.SIGKILL)).start()
        return self.teacher.project(restored, ids)

    def _wait_for_another(self) -> None:
        """Once: until another replica is in a call too. What waits meanwhile is the backlog that calls it up."""
        log = Path(self.spec.log)
        if not (log / "together").exists():
            (log / f"in-{os.getpid()}").touch()
            wait_for(lambda: len(list(log.glob("in-*"))) > 1, 120)
            (log / "together").touch()


def main() -> None:
    root, flux, temp_dir = sys.argv[1:]
    world = World(Path(root), on_ray=True)
    cfg = world.cfg
    cfg.teacher = TeacherConfig(
        path=flux, steps=2, device="cpu", gpus_per_replica=RANKS, injection=InjectionConfig(blocks="all", steps=1),
        pool=PoolConfig(min=1, max=2, num_cpus=0.5, num_gpus=RANKS, batch_size=4),
    )  # fmt: skip
    cfg.target.limit = 8
    cfg.generation.rows_per_block = 2  # enough blocks for a backlog
    cfg.generation.no_progress_timeout_s = 300  # eight processes that import torch, on a busy machine
    ray.init(
        address="local", num_cpus=4, num_gpus=2 * RANKS, object_store_memory=200_000_000, include_dashboard=False,
        log_to_driver=False, logging_level=logging.ERROR, _temp_dir=temp_dir,
    )  # fmt: skip
    before = ray.available_resources()
    books = generate(cfg, models=Models(teacher=WatchedTeacher(str(world.log), "001.png")))
    replicas = [json.loads(file.read_text()) for file in world.log.glob("replica-*.json")]
    wait_for(lambda: ray.available_resources().items() >= {kind: before[kind] for kind in ("CPU", "GPU")}.items(), 120)
    wait_for(lambda: not any(alive(pid) for replica in replicas for pid in replica["pids"]), 120)

    ray.shutdown()

    # The rest with one rank, in this process: the same teacher, as far as the store can tell.
    cfg.target.limit, cfg.ray.enabled = None, False
    cfg.teacher = replace(cfg.teacher, gpus_per_replica=1, pool=replace(cfg.teacher.pool, max=1, num_gpus=0))
    resumed = generate(cfg)
    answer = {"ok": books.ok, "failed": books.failed, "replicas": replicas, "resumed": resumed.ok}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

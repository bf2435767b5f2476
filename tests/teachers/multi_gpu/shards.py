"""Functions that the ranks of the tests run. Ranks import this file instead of the tests: it needs torch alone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ModelError
from gmd_ray.teachers import load_rank


def project(_: object, cfg: TeacherConfig, images: np.ndarray) -> np.ndarray:
    """Project images with this rank's share of a teacher."""
    return load_rank(cfg).project(torch.from_numpy(images), [str(i) for i in range(len(images))]).numpy()


def footprint(_: object, cfg: TeacherConfig, latents: np.ndarray, ids: tuple[int, int]) -> tuple[int, int]:
    """(bytes that one inversion leaves, parameters) of this rank."""
    from gmd_ray.teachers.flux.teacher import FluxTeacher
    from tests.teachers.flux.test_caches import size

    teacher = load_rank(cfg)
    assert isinstance(teacher, FluxTeacher)
    with torch.no_grad():
        _noise, kept = teacher.projector.invert(
            torch.from_numpy(latents), teacher.model.image_ids(*ids), teacher._plan(len(latents[0]))
        )
    if teacher.projector.modulation is not None:
        teacher.projector.modulation.restore()  # to count them too: every rank has them
    return size(kept), sum(parameter.numel() for parameter in teacher.model.parameters())


def project_compiled(_: object, cfg: TeacherConfig, images: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Project twice with compiled blocks; the numbers of graphs after the first and after the second projection."""
    from torch._dynamo.utils import counters

    from gmd_ray.teachers.acceleration.compilation import compile_blocks
    from gmd_ray.teachers.flux.teacher import FluxTeacher

    torch._dynamo.reset()
    counters.clear()
    teacher = load_rank(cfg)
    assert isinstance(teacher, FluxTeacher)
    compile_blocks(teacher.model, backend="eager")
    batch = torch.from_numpy(images)
    out, graphs = teacher.project(batch, ["0"]), counters["stats"]["unique_graphs"]
    teacher.project(batch.flip(-1), ["1"])
    return out.numpy(), graphs, counters["stats"]["unique_graphs"]


def on_every_rank(_: object, work: str) -> list[object]:
    """Answers of all ranks, as rank 0 sees them."""
    answers: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, {"rank": dist.get_rank, "threads": torch.get_num_threads}[work]())
    return answers


def misbehave(_: object, how: str, ballast: bytes) -> str:
    """Rank 1 misbehaves in that way, while rank 0 waits for it in a collective."""
    if how == "raise everywhere":
        raise ValueError("this image\nis too much")
    if dist.get_rank() == 1:
        if how == "raise":
            raise MemoryError("out of memory")
        if how == "accelerator":
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(4))
    return "all is well"


def wait_in_a_collective(_: object, mark: str) -> None:
    """Rank 0 waits for rank 1, which sleeps."""
    Path(mark, str(dist.get_rank())).touch()
    if dist.get_rank() == 1:
        time.sleep(600)
    dist.all_reduce(torch.ones(4))


def refuse() -> None:
    raise ModelError("transformer/: no such directory")


def alive(pid: int) -> bool:
    """True if a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def main() -> None:
    """Run a driver that the test kills: python -m tests.teachers.multi_gpu.shards FOLDER"""
    import sys

    from gmd_ray.teachers.multi_gpu.process_group import RankGroup

    ranks = RankGroup(dict, 2)
    print(*ranks.pids, flush=True)
    ranks.call(wait_in_a_collective, sys.argv[1])


if __name__ == "__main__":
    main()

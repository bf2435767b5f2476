"""The choice to compile the teacher's blocks or not, made once for a run: `teacher.compile=auto`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gmd_ray.config import Config, TeacherConfig
from gmd_ray.errors import GmdError

COMPILE_S = 51.0
"""Seconds that a replica spends on compiling: 31 and 20 s on one H100 for its two families of graphs, one for images
alone and one for images together (docs/decisions.md, "Memory and cost")."""
CHECKS_S = 13.0
"""Seconds that it spends before, on comparing two Triton kernels with the plain path inside small compiled functions
(`prepare.fuse`). An upper estimate and not measured: two graphs, each at a quarter of the 26.4 s that the four graphs
of the first family took in tests/benchmarks/gpu/h100_873af66.txt."""
SAVED_S_PER_FLOP = 6.4e-16
"""Seconds that compiled blocks save for each FLOP. On that H100 they saved 9.2e-16 for an image of 512 x 512 pixels by
itself, whose launches the host cannot issue fast enough otherwise, and nothing for four together. A compilation that
does not pay costs a minute once, and a missing one a second for each lone image, so the value is near the former."""
USUAL_SIDE = 512
"""Side in pixels of the images that are assumed where there are no tiles: the choice is made before any is read."""


@dataclass(frozen=True)
class CompileChoice:
    """The answer, and the reason in words that stand behind it."""

    on: bool
    why: str

    def __str__(self) -> str:
        return f"{'on' if self.on else 'off'}: {self.why}"


def choose_compilation(cfg: TeacherConfig, images: int, *, on_gpu: bool) -> CompileChoice:
    """The value of `teacher.compile` for a run: as set, or for `auto` what takes less time.

    Args:
        images: number of images that the teacher's pool is to project.
        on_gpu: whether its replicas run on GPUs.
    """
    if cfg.compile != "auto":
        return CompileChoice(bool(cfg.compile), f"teacher.compile={str(cfg.compile).lower()}")
    if not on_gpu:
        return CompileChoice(False, "the teacher runs on a CPU")
    if cfg.offload != "none":
        return CompileChoice(False, f"not together with teacher.offload={cfg.offload}")
    from gmd_ray.teachers.cost.estimate import TeacherEstimate

    side = cfg.tile or USUAL_SIDE
    try:
        flops = TeacherEstimate(cfg).image(side, side).flops
    except GmdError:  # Stable Diffusion, a plugin, or no config file in reach
        return CompileChoice(False, "there is no cost model for this teacher")
    saved = flops / cfg.gpus_per_replica * SAVED_S_PER_FLOP
    needed = math.ceil((CHECKS_S + COMPILE_S) / saved)
    share = math.ceil(images / cfg.pool.max)
    word = "pays" if share >= needed else "would pay"
    return CompileChoice(
        share >= needed,
        f"{share:,} images a replica, and compiling {word} from {needed:,} on (of {side} x {side} pixels)",
    )


def compilation_of_run(cfg: Config, images: int) -> CompileChoice:
    """The choice for a run of `generate` that has to make that many images."""
    return choose_compilation(cfg.teacher, images, on_gpu=_on_gpu(cfg.teacher, in_process=not cfg.ray.enabled))


def _on_gpu(cfg: TeacherConfig, *, in_process: bool) -> bool:
    """True if the replicas find a GPU. Actors see those that they reserve alone."""
    if cfg.device != "auto":
        return cfg.device.startswith("cuda")
    if not in_process:
        return cfg.pool.num_gpus > 0
    import torch

    return torch.cuda.is_available()

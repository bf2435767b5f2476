"""The GPUs and CPUs that the settings ask for, compared with this machine: Ray would wait forever for missing ones."""

from __future__ import annotations

import math
import os
from collections.abc import Collection

from gmd_ray.config import Config, PoolConfig
from gmd_ray.planning.findings import Findings

_POOLS = {
    "generate": ("student", "teacher", "scorer"),
    "evaluate": ("evaluation",),
}
"""Stage -> the pools that are up at the same time."""


def check_machine(found: Findings, cfg: Config, stages: Collection[str]) -> None:
    """Compare what a run in a private Ray session asks for with this machine.

    Args:
        stages: of generate, finetune, pretrain, evaluate.
    """
    wanted = {stage: _asked(cfg, stage) for stage in stages}
    devices = _cuda_devices(cfg, stages)
    if any(wanted.values()) or devices:
        _check_gpus(found, {stage: asked for stage, asked in wanted.items() if asked}, devices)
    if not {"finetune", "pretrain"}.isdisjoint(stages):
        _check_cpus(found, cfg)


def describe_fleet(found: Findings, cfg: Config) -> None:
    """State the GPUs that a plan asks for on a cluster elsewhere, which cannot be checked from here."""
    asked = [item for stage in ("generate", "finetune", "evaluate") for item in _asked(cfg, stage)]
    if asked:
        found.fact("gpu", "", f"GPUs asked for of the fleet: {', '.join(text for text, _ in asked)}")


def visible_gpus() -> int:
    """Number of CUDA devices that PyTorch sees under CUDA_VISIBLE_DEVICES. Imports torch, which takes seconds."""
    import torch

    return torch.cuda.device_count()


def _check_gpus(found: Findings, wanted: dict[str, list[tuple[str, float]]], devices: dict[str, int]) -> None:
    has = visible_gpus()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    here = "none" if has == 0 else f"{has}"
    here += f" (CUDA_VISIBLE_DEVICES={hidden!r})" if hidden is not None else ""
    for stage, asked in wanted.items():
        need = sum(gpus for _, gpus in asked)
        if need > has + 1e-6:
            settings, waits = ", ".join(text for text, _ in asked), "would wait for" if has else "needs"
            key = asked[0][0].partition("=")[0]
            mend = "set training.use_gpu=false" if key == "training.use_gpu" else "lower what its pools take"
            found.error(
                "gpu",
                key,
                f"{settings}: {_what(stage)} {waits} {need:g} GPU{'s' if need > 1 else ''}, and this machine has "
                f"{here}; {mend}, or run where there are more (ray.address=...)",
            )
    for key, index in devices.items():
        if index >= has:
            name = "cuda" if index == 0 else f"cuda:{index}"
            found.error(
                "gpu", key, f"{key}={name}: this machine has {here} of the GPUs that it means; set it to auto or cpu"
            )


def _check_cpus(found: Findings, cfg: Config) -> None:
    """Check that Stage 2 gets its CPUs in the private session, which its smallest pools share."""
    pools = [cfg.student.pool, cfg.teacher.pool, cfg.scorer.pool]
    shared = math.ceil(sum((pool.initial or pool.min) * pool.num_cpus for pool in pools) + 0.5)
    cpus = cfg.ray.num_cpus or max(os.cpu_count() or 1, shared)
    workers, each = cfg.training.min_workers or cfg.training.num_workers, cfg.training.cpus_per_worker
    if each and int(cpus / each + 1e-6) < workers:
        times = f" with training.num_workers={workers}" if workers > 1 else ""
        found.error(
            "cpu",
            "training.cpus_per_worker",
            f"training.cpus_per_worker={each:g}{times}: the fine-tune would wait for {workers * each:g} CPUs, and a "
            f"private Ray session here has {cpus:g}; lower it, or set ray.num_cpus to share them",
        )


def _what(stage: str) -> str:
    return {"generate": "the stream", "evaluate": "the evaluation"}.get(stage, "the fine-tune")


def _asked(cfg: Config, stage: str) -> list[tuple[str, float]]:
    """List (setting as text, number of GPUs) for a stage."""
    training = cfg.training
    if stage in ("finetune", "pretrain"):
        workers = training.min_workers or training.num_workers
        name = "min_workers" if training.min_workers else "num_workers"
        return [(f"training.use_gpu=true with training.{name}={workers}", float(workers))] if training.use_gpu else []
    asked = []
    for name in _POOLS[stage]:
        pool: PoolConfig = getattr(cfg, name).pool
        actors = pool.initial or pool.min
        if pool.num_gpus > 0:
            ranks = f" with teacher.gpus_per_replica={cfg.teacher.gpus_per_replica}" if name == "teacher" else ""
            ranks = ranks if cfg.teacher.gpus_per_replica > 1 else ""
            times = f" x {actors} actors" if actors > 1 else ""
            asked.append((f"{name}.pool.num_gpus={pool.num_gpus:g}{times}{ranks}", actors * pool.num_gpus))
    return asked


def _cuda_devices(cfg: Config, stages: Collection[str]) -> dict[str, int]:
    """Setting -> CUDA device number, for each device that the settings name."""
    names = [name for stage in stages for name in _POOLS.get(stage, ())]
    if "evaluate" in stages and cfg.evaluation.online and "teacher" not in names:
        names.append("evaluation")  # the teacher runs where the evaluation does
    devices = {f"{name}.device": getattr(cfg, name).device for name in dict.fromkeys(names)}
    return {
        key: int(device.partition(":")[2] or 0) for key, device in devices.items() if device.partition(":")[0] == "cuda"
    }

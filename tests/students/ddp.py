"""Training a student's module under DDP in a single process."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gmd_ray.students import Student


def train_in_ddp(
    student: Student, pairs: list[tuple[torch.Tensor, torch.Tensor]], folder: Path, **options: bool
) -> None:
    """Backward passes over (lq, target) batches; from the second on DDP complains of parameters without gradient.

    Args:
        folder: where the group of one rank meets.
        options: of `DistributedDataParallel`.
    """
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/ddp", rank=0, world_size=1)
    try:
        _backward(student, pairs, options)
    finally:
        torch.distributed.destroy_process_group()


def _backward(student: Student, pairs: list[tuple[torch.Tensor, torch.Tensor]], options: dict[str, bool]) -> None:
    """A function of its own, so that DDP is gone before its group.

    Where it is the last to hold the group, it waits for gloo's thread without letting go of the GIL, and that thread
    may want it: both wait for ever (torch 2.13).
    """
    forward = nn.parallel.DistributedDataParallel(student.module, **options)
    for pair in pairs:
        loss, _ = student.training_loss(*pair, forward=forward)
        loss.backward()

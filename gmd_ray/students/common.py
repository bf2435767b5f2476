"""Functions shared by all kinds of students."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gmd_ray.config import StudentConfig
from gmd_ray.errors import ModelError

log = logging.getLogger("gmd_ray")

_CPU_SIDE = 512
"""Side of the image whose pixels bound a batch of tiles on a CPU; see `tiles_at_once`."""


@functools.cache
def say_once(text: str, level: int = logging.INFO) -> None:
    """Log a line at most once per process, since a run loads its student several times."""
    log.log(level, "%s", text)


def tiles_at_once(cfg: StudentConfig, device: torch.device) -> int:
    """Return the number of tiles that a network processes together: the batch size of the student's pool.

    A CPU gains little from batches, and tiles are meant to save memory. There, the tiles of a batch have together at
    most as many pixels as one image of 512 x 512.
    """
    if device.type != "cpu" or not cfg.tile:
        return cfg.pool.batch_size
    return max(1, min(cfg.pool.batch_size, _CPU_SIDE**2 // cfg.tile**2))


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and afterwards restore the mode of every submodule (a trainer may have frozen some)."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def fingerprint(weights: Mapping[str, Tensor], settings: dict[str, Any]) -> str:
    """Hash weights (by key, type, shape and value) and settings to 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key, value in sorted(weights.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def refuse_not_finite(module: nn.Module, what: str) -> None:
    """Refuse a network with parameters that are not finite: all its images would fail one by one.

    Args:
        module: the network.
        what: description of the network, for the error.

    Raises:
        ModelError: a parameter holds NaN or infinity; the message names the first.
    """
    for name, parameter in module.named_parameters():
        if not parameter.detach().isfinite().all():
            raise ModelError(f"{what}: {name} holds NaN or infinity: its training diverged; take an earlier one")


def save_pickle(tree: Any, path: Path) -> None:
    """Save with `torch.save` such that equal trees give equal bytes.

    `torch.save` gets an open file, since it stores the stem of a path that it is given.
    """
    with path.open("wb") as file:
        torch.save(tree, file)

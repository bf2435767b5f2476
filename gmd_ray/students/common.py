"""What the families of students share."""

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
from gmd_ray.errors import ConfigError, ModelError

log = logging.getLogger("gmd_ray")

_CPU_SIDE = 512


@functools.cache
def say_once(text: str, level: int = logging.INFO) -> None:
    """Log a line, once in a process: a student is loaded several times in a run."""
    log.log(level, "%s", text)


def device_of(name: str) -> torch.device:
    """The device that `student.device` names.

    Raises:
        ConfigError: no such device, or none of that kind here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"student.device={name}: auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"student.device={name}: no CUDA device is visible here, use auto or cpu")
    return device


def tiles_at_once(cfg: StudentConfig, device: torch.device) -> int:
    """How many tiles go through a network together: as many as the pool's batches have images.

    On a CPU, which gains little by it, no more than one image of 512 pixels a side has: tiles are there to save memory.
    """
    if device.type != "cpu" or not cfg.tile:
        return cfg.pool.batch_size
    return max(1, min(cfg.pool.batch_size, _CPU_SIDE**2 // cfg.tile**2))


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every submodule's own mode again (a trainer may have frozen some)."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def fingerprint(weights: Mapping[str, Tensor], settings: dict[str, Any]) -> str:
    """16 hex digits of weights (by key, type, shape and value) and settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key, value in sorted(weights.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def refuse_not_finite(module: nn.Module, what: str) -> None:
    """Refuse a network with parameters that are no numbers: every image would be lost to them, one by one.

    Raises:
        ModelError: naming the first.
    """
    for name, parameter in module.named_parameters():
        if not parameter.detach().isfinite().all():
            raise ModelError(f"{what}: {name} holds NaN or infinity: its training diverged; take an earlier one")


def save_pickle(tree: Any, path: Path) -> None:
    """`torch.save`, byte for byte the same for the same tree: given a path, it would write that path's stem inside."""
    with path.open("wb") as file:
        torch.save(tree, file)

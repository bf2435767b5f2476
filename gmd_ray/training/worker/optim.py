"""The optimiser, its learning rate, and the moving average of the weights, which is exported."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gmd_ray.config import TrainingConfig
from gmd_ray.training.worker.parallel import sharded_like


def make_optimizer(module: nn.Module, cfg: TrainingConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over every parameter that requires a gradient."""
    kind = torch.optim.AdamW if cfg.optimizer == "adamw" else torch.optim.Adam
    parameters = [p for p in module.parameters() if p.requires_grad]
    return kind(parameters, lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay)


def learning_rate(step: int, cfg: TrainingConfig) -> float:
    """The learning rate of a step, counted from 0: a linear warm-up, then the schedule.

    Schedules: `constant` stays at `cfg.lr`; `cosine` falls to zero at `cfg.steps`; `multistep` multiplies by
    `cfg.lr_decay` at each of `cfg.milestones`, which count from the start of the run (`docs/method.md`, "Students").
    """
    warmup = min(cfg.warmup_steps, cfg.steps)
    if step < warmup:
        return cfg.lr * (step + 1) / warmup
    if cfg.schedule == "cosine":
        return cfg.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, cfg.steps - warmup)))
    if cfg.schedule == "multistep":
        return cfg.lr * cfg.lr_decay ** sum(step >= milestone for milestone in cfg.milestones)
    return cfg.lr


class Ema:
    """Exponential moving average of a module's parameters and float buffers, starting from its present weights.

    Other buffers (counters, indices) are copied. `state` is a complete state dict of the module.

    Args:
        module: the module that is trained.
        decay: a number in [0, 1); 0 gives the module's own weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        # Detached views of the module's tensors, into which optimisers and loaders write in place.
        self._live = dict(module.state_dict())
        self.state: dict[str, Tensor] = {key: value.clone() for key, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the module's present weights."""
        for key, average in self.state.items():
            if average.is_floating_point() or average.is_complex():
                average.lerp_(self._live[key], 1 - self.decay)
            else:
                average.copy_(self._live[key])

    def load(self, state: dict[str, Tensor]) -> None:
        """Load a saved `state`."""
        assert state.keys() == self.state.keys()
        for key, value in state.items():
            self.state[key].copy_(sharded_like(value, self.state[key]))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the module the averaged weights while a `with` block runs, then its own again."""
        own = {key: value.clone() for key, value in self._live.items()}
        self._copy(self.state)
        try:
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, state: dict[str, Tensor]) -> None:
        for key, value in state.items():
            self._live[key].copy_(value)

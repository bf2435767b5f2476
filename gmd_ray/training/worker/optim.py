"""The optimiser, its schedule and the moving average that is exported."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gmd_ray.config import TrainingConfig
from gmd_ray.training.worker.parallel import sharded_like


def make_optimizer(module: nn.Module, cfg: TrainingConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over every parameter that wants a gradient."""
    kind = torch.optim.AdamW if cfg.optimizer == "adamw" else torch.optim.Adam
    parameters = [p for p in module.parameters() if p.requires_grad]
    return kind(parameters, lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay)


def learning_rate(step: int, cfg: TrainingConfig) -> float:
    """Of a step (from 0): a linear warm-up, then one of

    constant: `cfg.lr`; cosine: down to zero after `cfg.steps`; multistep: times `cfg.lr_decay` at each of
    `cfg.milestones`, steps counted from the start of the run (restoration.md 1.5: 250/400/450/475K of 500K, halved).
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
    """Exponential moving average of a module's parameters and float buffers, from the weights that it starts with.

    Other buffers (counters, indices) are taken as they are. `state` is a whole state dict of the module.

    Args:
        decay: in [0, 1); 0 follows the module itself.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        # Detached views of the module's own tensors: optimisers and loaders write into those in place.
        self._live = dict(module.state_dict())
        self.state: dict[str, Tensor] = {key: value.clone() for key, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's weights as they are now."""
        for key, average in self.state.items():
            if average.is_floating_point() or average.is_complex():
                average.lerp_(self._live[key], 1 - self.decay)
            else:
                average.copy_(self._live[key])

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved `state`."""
        assert state.keys() == self.state.keys()
        for key, value in state.items():
            self.state[key].copy_(sharded_like(value, self.state[key]))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The module with the averaged weights, and afterwards with its own again."""
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

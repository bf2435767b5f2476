"""Figures of training steps, as means over steps and workers."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist
from torch import Tensor


class Meter:
    """Means over the steps since the last reading, over all workers."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        self._steps = self._n_source = self._n_target = 0
        self._since, self._waited = time.monotonic(), 0.0

    def add(self, sums: Tensor, norm: Tensor, composition: tuple[int, int]) -> None:
        """Add the figures of one step.

        Args:
            sums: (3,), of this worker: its part of the loss, the sum of its source crops' losses, and the sum of its
                target crops' losses.
            norm: norm of the global gradient, the same on all workers.
            composition: numbers of source and target crops in the global batch.
        """
        self._sums += torch.cat([sums, norm.reshape(1)]).to(self._sums)
        self._steps += 1
        self._n_source += composition[0]
        self._n_target += composition[1]

    def read(self, waited_s: float) -> dict[str, float]:
        """Compute the global figures since the last reading. Every worker must call this at the same step.

        Args:
            waited_s: seconds that this worker has waited for data since it started.

        Returns:
            loss, grad_norm, images_per_s, n_source, n_target, data_wait (share of the time, of this worker), and
            loss_source and loss_target, each if there were such crops.
        """
        sums = self._sums.clone()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
            sums[3] /= dist.get_world_size()
        loss, source, target, norm = sums.tolist()
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        figures = {
            "loss": loss / self._steps,
            "grad_norm": norm / self._steps,
            "images_per_s": (self._n_source + self._n_target) / seconds,
            "n_source": self._n_source / self._steps,
            "n_target": self._n_target / self._steps,
            "data_wait": (waited_s - self._waited) / seconds,
        }
        if self._n_source:
            figures["loss_source"] = source / self._n_source
        if self._n_target:
            figures["loss_target"] = target / self._n_target
        self._sums.zero_()
        self._steps = self._n_source = self._n_target = 0
        self.restart(waited_s)
        return figures

    def restart(self, waited_s: float) -> None:
        """Restart the clock, after time spent on something other than training."""
        self._since, self._waited = time.monotonic(), waited_s

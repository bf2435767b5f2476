"""One optimiser step on a worker's share of a global batch. It is plain torch, without Ray."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from gmd_ray.config import TrainingConfig
from gmd_ray.students import Student
from gmd_ray.training.data.batches import Batch
from gmd_ray.training.data.mixing import Mixture
from gmd_ray.training.worker.optim import Ema, make_optimizer
from gmd_ray.training.worker.parallel import gathering, gradient_norm


class TrainingStep:
    """Forward and backward pass in parts, the mixed loss, clipping, the optimiser, and the average of the weights.

    Args:
        student: the student, whose module is on the device of this worker.
        joined: the module that the step calls, joined with those of the other workers by `parallel.wrap`.
        mixture: gives the weights of source and target crops.
        cfg: settings of the training; with `compile` the joined module is compiled.
        seed: seed of the run.
        rank: number of this worker, which seeds DropPath together with the step.
        world_size: number of workers, over which DDP and FSDP average the gradients.
        device: device of this worker.
    """

    ema: Ema
    """The moving average of the module's weights."""
    optimizer: torch.optim.Optimizer
    """The optimiser of the module's parameters."""

    def __init__(
        self,
        student: Student,
        joined: nn.Module,
        mixture: Mixture,
        cfg: TrainingConfig,
        *,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        self._student, self._joined, self._mixture, self._cfg = student, joined, mixture, cfg
        self._seed, self._rank, self._world_size, self._device = seed, rank, world_size, device
        self._model = cast(nn.Module, torch.compile(joined)) if cfg.compile else joined
        self._takes_keys = "keys" in inspect.signature(student.training_loss).parameters
        self.ema = Ema(student.module, cfg.ema)
        self.optimizer = make_optimizer(student.module, cfg)

    def __call__(self, step: int, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
        """Take the step. If the gradient is not finite, the weights stay as they are.

        Args:
            step: number of the step, from 0.
            batch: this worker's share of its global batch.
            lr: learning rate.

        Returns:
            (sums, norm). `sums` has shape (3,): this worker's part of the global loss, the sum of its source crops'
            losses, and the sum of its target crops' losses. `norm` is the norm of the global gradient, a scalar.
        """
        cfg = self._cfg
        torch.manual_seed(_step_seed(self._seed, step, self._rank))  # a resumed run repeats DropPath
        weights = self._mixture.weights(step)
        layout = memory_layout(cfg)
        self.optimizer.zero_grad()
        sums = torch.zeros(3, device=self._device)
        parts = list(zip(*(side.tensor_split(cfg.accumulate) for side in batch), strict=True))
        for number, (lq, hq, source, keys) in enumerate(parts, start=1):
            drawn = {"keys": keys} if self._takes_keys else {}
            lq, hq = (side.to(self._device, non_blocking=True, memory_format=layout) for side in (lq, hq))
            source = source.to(self._device, non_blocking=True)
            with gathering(self._joined, last=number == len(parts)):
                with _autocast(self._device, cfg.bf16):
                    losses, _ = self._student.training_loss(lq, hq, self._model, reduce=False, **drawn)
                part = (losses * torch.where(source, weights.source, weights.target)).sum()
                # DDP and FSDP average gradients over the workers. Multiplying by their number gives the sum, which is
                # the gradient of the global loss even if the workers' parts are of unequal size. A loss that is not
                # finite becomes a NaN gradient here: the gradient of |NaN| alone would be 0, and go unnoticed.
                (part * torch.where(part.isfinite(), self._world_size, torch.nan)).backward()
            losses = losses.detach()
            # torch.where and not a product with the mask: 0 * NaN would carry a NaN from one stream to the other.
            streams = [torch.where(mask, losses, 0).sum() for mask in (source, ~source)]
            sums += torch.stack([part.detach(), *streams])
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = gradient_norm(parameters)
        if torch.isfinite(norm):
            if cfg.clip_grad_norm > 0:
                torch.nn.utils.clip_grads_with_norm_(parameters, cfg.clip_grad_norm, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.ema.update()
        return sums, norm


def memory_layout(cfg: TrainingConfig) -> torch.memory_format:
    """The memory layout of the network and of its images."""
    return torch.channels_last if cfg.channels_last else torch.contiguous_format


def _autocast(device: torch.device, wanted: bool) -> contextlib.AbstractContextManager[Any]:
    if wanted and device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", torch.bfloat16)
    return contextlib.nullcontext()


def _step_seed(*key: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1

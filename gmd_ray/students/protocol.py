"""What the engines know of a student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class Student(Protocol):
    """A restorer. Tensors are float32 RGB in [0, 1], shape (B, 3, H, W)."""

    scale: int
    """Output side over input side."""
    module: nn.Module
    """The trainable network; what DDP wraps."""
    fingerprint: str
    """Weights and inference settings, as a short hex digest."""

    def restore(self, lq: torch.Tensor, ids: Sequence[str] | None = None) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 3, H * scale, W * scale), without gradients, clamped to [0, 1].

        A student that samples draws its noise from the image's id, one for each image, so that a result depends
        neither on the batch it rides in nor on the worker; without ids, from the image's content.
        """
        ...

    def training_loss(
        self,
        lq: torch.Tensor,
        hq: torch.Tensor,
        forward: nn.Module | None = None,
        *,
        reduce: bool = True,
        keys: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Scalar loss of a batch of crops and values to log.

        `forward` stands in for `module` where the trainer has wrapped it (DDP must see the call). Without `reduce` the
        loss of each crop, (B,), whose mean is the scalar: the trainer weighs source and target crops itself.

        `keys`, (B,) int64 on the CPU, seed what a student draws for each crop, so that its loss does not depend on the
        worker and the part of a batch that it rides in. A student that draws nothing may leave the parameter out.
        """
        ...

    def save(self, path: str | Path) -> None:
        """Write the weights in the layout the checkpoint came in; the tool that made it loads the file."""
        ...

"""The interface through which the engines use a student."""

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
    """Output side divided by input side."""
    module: nn.Module
    """The trainable network, which DDP wraps."""
    fingerprint: str
    """Short hexadecimal digest of the weights and inference settings."""

    def restore(self, lq: torch.Tensor, ids: Sequence[str] | None = None) -> torch.Tensor:
        """Restore a batch of images, without gradients.

        A student that draws noise seeds it by each image's id, or by its content without ids. So a result depends
        neither on the other images of the batch nor on the worker.

        Args:
            lq: (B, 3, H, W).
            ids: one id for each image.

        Returns:
            (B, 3, H * scale, W * scale), clamped to [0, 1].
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
        """Compute the loss of a batch of crops.

        Args:
            lq: (B, 3, h, w).
            hq: (B, 3, h * scale, w * scale).
            forward: called in place of `module` if the trainer has wrapped it (DDP must see the call).
            reduce: return the mean loss. The trainer passes False to weight source and target crops itself.
            keys: (B,) int64 on the CPU, seeds of what the student draws for each crop, so that the loss of a crop does
                not depend on the worker and on its batch. A student that draws nothing may omit the parameter.

        Returns:
            the scalar loss and values to log. Without `reduce`, the loss of each crop, (B,), whose mean is the scalar.
        """
        ...

    def save(self, path: str | Path) -> None:
        """Write the weights in the layout of the loaded checkpoint, so that the tool that made it loads the file."""
        ...

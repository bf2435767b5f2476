"""What the engines know of a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch


@runtime_checkable
class Teacher(Protocol):
    """A frozen generative model that pulls images onto its manifold.

    A teacher may have `batch_multiple: int`: images whose sides it would reflect-pad, on the right and below, to the
    same multiples of it, and crop again, may come so padded in one batch. Without it only images of one size do.
    """

    fingerprint: str
    """Weights and settings, as a short hex digest; goes into every row."""

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """float32 RGB in [0, 1], (B, 3, H, W) -> the same shape.

        Deterministic given (image, id, settings), whatever the batch or replica; `ids` seed teachers that draw noise.
        """
        ...

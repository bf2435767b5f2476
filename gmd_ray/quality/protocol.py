"""What the engines know of scorers and metrics."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch


@runtime_checkable
class Scorer(Protocol):
    """A no-reference quality score."""

    higher_is_better: bool
    fingerprint: str
    """Metric, weights and settings, as a short hex digest."""

    def score(self, images: torch.Tensor) -> torch.Tensor:
        """float32 RGB in [0, 1], (B, 3, H, W) -> (B,) float32."""
        ...


@runtime_checkable
class Metric(Protocol):
    """A quality metric of the evaluation."""

    name: str
    higher_is_better: bool
    needs_reference: bool

    def __call__(self, image: torch.Tensor, reference: torch.Tensor | None = None) -> float:
        """One image, float32 RGB in [0, 1], (3, H, W), and its ground truth where `needs_reference`."""
        ...

"""What the engines know of scorers and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # names must be known to a config check that never needs torch
    import numpy as np
    import torch


@runtime_checkable
class Scorer(Protocol):
    """A no-reference quality score."""

    higher_is_better: bool

    @property
    def fingerprint(self) -> str:
        """Metric, weights and settings, as a short hex digest."""
        ...

    def score(self, images: torch.Tensor) -> torch.Tensor:
        """float32 RGB in [0, 1], (B, 3, H, W) -> (B,) float32, on the device of `images`.

        The value of an image does not depend on the batch it rides in.

        Raises:
            DataError: an image that this score cannot measure, e.g. one that holds NaN.
        """
        ...


@runtime_checkable
class Metric(Protocol):
    """A quality metric of the evaluation."""

    name: str
    higher_is_better: bool
    needs_reference: bool

    def __call__(self, image: torch.Tensor, reference: torch.Tensor | None = None) -> float:
        """One image, float32 RGB in [0, 1], (3, H, W), and its ground truth where `needs_reference`.

        Raises:
            DataError: an image that this metric cannot measure (too small, another size than its reference, NaN).
        """
        ...


@runtime_checkable
class SetMetric(Protocol):
    """A metric that compares a set of images with the set of their ground truths.

    Features are drawn image by image, wherever the images are; `quality.compare_sets` makes a value of them.
    """

    name: str
    higher_is_better: bool
    needs_reference: bool

    def features(self, image: torch.Tensor) -> np.ndarray:
        """One image, float32 RGB in [0, 1], (3, H, W), to float32 features (D,).

        Raises:
            DataError: an image that this metric cannot measure.
        """
        ...

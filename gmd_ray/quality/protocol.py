"""The interfaces through which the engines use scorers and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # the check of the settings imports this package and must not wait for torch
    import numpy as np
    import torch


@runtime_checkable
class Scorer(Protocol):
    """A quality score of an image alone, without a ground truth."""

    higher_is_better: bool

    @property
    def fingerprint(self) -> str:
        """Short hexadecimal digest of the metric, its weights and its settings."""
        ...

    def score(self, images: torch.Tensor) -> torch.Tensor:
        """Score float32 RGB images in [0, 1], (B, 3, H, W).

        Returns:
            float32 (B,) on the device of `images`. The value of an image does not depend on the rest of its batch.

        Raises:
            DataError: an image that cannot be scored, e.g. one that holds NaN.
        """
        ...


@runtime_checkable
class Metric(Protocol):
    """A quality metric of the evaluation."""

    name: str
    higher_is_better: bool
    needs_reference: bool

    def __call__(
        self, image: torch.Tensor, reference: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> float:
        """Measure one float32 RGB image in [0, 1], (3, H, W).

        Args:
            reference: the ground truth, of the same shape; required if `needs_reference`.
            mask: bool (H, W), the pixels that count, for an image that was aligned to its reference: PSNR and SSIM are
                means over them, and other metrics see both images black elsewhere. None: all pixels.

        Raises:
            DataError: an image that cannot be measured: too small, of another size than its reference, or NaN.
        """
        ...


@runtime_checkable
class SetMetric(Protocol):
    """A metric that compares a set of images with the set of their ground truths.

    Each worker computes the features of its images; `quality.compare_sets` computes the value from all of them.
    """

    name: str
    higher_is_better: bool
    needs_reference: bool

    def features(self, image: torch.Tensor) -> np.ndarray:
        """Compute the float32 features (D,) of one float32 RGB image in [0, 1], (3, H, W).

        Raises:
            DataError: an image that cannot be measured.
        """
        ...

"""The interface through which the engines use a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch


@runtime_checkable
class Teacher(Protocol):
    """A frozen generative model that pulls images onto its manifold.

    A teacher may have an attribute `batch_multiple: int`, if it reflect-pads images on the right and below to multiples
    of that number and crops the result. Images that it would pad to the same size may then come in one batch, padded.
    The batches of other teachers hold images of one size.

    It may also have a method `take_counts() -> dict[str, int]`, which returns what it has counted since the last call.
    `generate` adds the counts up over all replicas and writes them into the store's `runs.json`.
    """

    fingerprint: str
    """Short hex digest of weights and settings; it is written into every row of a store."""

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """Project a batch of images.

        The result for an image depends on the image, its id and the settings, up to rounding, and not on the rest of
        the batch or on the replica.

        Args:
            restored: float32 RGB in [0, 1], (B, 3, H, W).
            ids: one for each image; teachers that draw noise seed it with them.

        Returns:
            float32 RGB in [0, 1], (B, 3, H, W).
        """
        ...

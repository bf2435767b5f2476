"""What a model may return: anything else is its batch's failure, never a value in the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

STRAY = 0.02
"""How far outside [0, 1] a value may lie without a word: rounding, and the ringing of a resize."""
STRAY_SHARE = 0.01
"""Of an image's values beyond that, from which on the image is counted as clipped."""
FAR = 0.5
FAR_SHARE = 0.1
"""An image of which more than this share lies further outside than `FAR` is none: another range, or a model that
diverged. What clipping would make of it is not what the model meant."""


def images_of(values: Any, shape: Sequence[int], what: str) -> tuple[torch.Tensor, int]:
    """The images that a model returned, float32 of this shape, and how many of them have to be clipped.

    Raises:
        ValueError: no tensor of floats, another shape, values that are not finite or far outside [0, 1].
    """
    images = _floats(values, shape, what)
    excess = (images - images.clamp(0, 1)).abs()
    if not excess.numel() or float(excess.max()) <= STRAY:
        return images, 0
    excess = excess.flatten(1)
    if bool(((excess > FAR).float().mean(1) > FAR_SHARE).any()):
        low, high = float(images.min()), float(images.max())
        raise ValueError(f"{what} ranges from {low:.4g} to {high:.4g}, and an image's values are those in [0, 1]")
    return images, int(((excess > STRAY).float().mean(1) > STRAY_SHARE).sum())


def scores_of(values: Any, count: int, what: str) -> list[float]:
    """The scores of `count` images as a model returned them.

    Raises:
        ValueError: no tensor of floats, another shape, or values that are not finite.
    """
    scores: list[float] = _floats(values, (count,), what).tolist()
    return scores


def _floats(values: Any, shape: Sequence[int], what: str) -> torch.Tensor:
    if not isinstance(values, torch.Tensor):
        raise ValueError(f"{what} is a {type(values).__module__}.{type(values).__qualname__}, not a tensor")
    if not values.is_floating_point():
        raise ValueError(f"{what} is a tensor of {str(values.dtype).removeprefix('torch.')}, not of floats")
    if tuple(values.shape) != tuple(shape):
        raise ValueError(f"{what} has the shape {tuple(values.shape)}, and {tuple(shape)} is due")
    values = values.detach().float()  # first: what float64 holds may be beyond the store's float32
    if not torch.isfinite(values).all():
        raise ValueError(f"{what} is not finite")
    return values

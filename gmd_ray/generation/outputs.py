"""Checks of what a model returns. Anything that is no image or score fails its batch, and never reaches the store."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

log = logging.getLogger("gmd_ray.generation")

CLIPPED = "clipped"
"""Name of a stage's count of images that had to be clipped."""
STRAY = 0.02
"""Distance outside [0, 1] at which a value causes no warning: rounding and the ringing of a resize reach it."""
STRAY_SHARE = 0.01
"""An image with a larger share of values beyond `STRAY` is counted as clipped."""
FAR = 0.5
FAR_SHARE = 0.1
"""An output with a larger share of values further than `FAR` outside [0, 1] is no image: the model uses another range,
or has diverged, and clipping would not give what it meant."""


def images_of(values: Any, shape: Sequence[int], what: str) -> tuple[torch.Tensor, int]:
    """Check the images that a model returned.

    Args:
        values: the model's output.
        shape: (B, C, H, W) that is due.
        what: the output's name, for the error.

    Returns:
        the images as float32 (not clipped), and how many of them have to be clipped.

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
    """Check the scores of `count` images that a model returned, and return them as floats.

    Raises:
        ValueError: no tensor of floats, another shape, or values that are not finite.
    """
    scores: list[float] = _floats(values, (count,), what).tolist()
    return scores


def say_counts(counts: Mapping[tuple[str, str], int]) -> None:
    """Log what the stages of a run have counted, (stage, what) -> number.

    Clipped images are a warning. A teacher that skips parts of its evaluations counts `evaluations` and `skipped`.
    """
    for (stage, what), number in sorted(counts.items()):
        if what == CLIPPED:
            text = "%s: %d images had more than %g %% of their values outside [0, 1], and were clipped to it"
            log.warning(text, stage, number, 100 * STRAY_SHARE)
    if evaluations := counts.get(("project", "evaluations")):
        skipped = counts.get(("project", "skipped"), 0)
        text = "project: teacher.step_cache skipped %.0f %% of the teacher's evaluations (%d of %d)"
        log.info(text, 100 * skipped / evaluations, skipped, evaluations)


def _floats(values: Any, shape: Sequence[int], what: str) -> torch.Tensor:
    if not isinstance(values, torch.Tensor):
        raise ValueError(f"{what} is a {type(values).__module__}.{type(values).__qualname__}, not a tensor")
    if not values.is_floating_point():
        raise ValueError(f"{what} is a tensor of {str(values.dtype).removeprefix('torch.')}, not of floats")
    if tuple(values.shape) != tuple(shape):
        raise ValueError(f"{what} has the shape {tuple(values.shape)}, and {tuple(shape)} is due")
    values = values.detach().float()  # before the check: float64 may hold what the store's float32 cannot
    if not torch.isfinite(values).all():
        raise ValueError(f"{what} is not finite")
    return values

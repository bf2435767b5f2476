"""Color fix: give a projected image the colors of the restored image and keep its detail."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from gmd_ray.hashing import short_digest
from gmd_ray.teachers.protocol import Teacher

LEVELS = 5
"""Levels of the wavelet transform; the last filter has gaps of 16 pixels."""


class ColorFixedTeacher:
    """Any teacher, with the colors of its output corrected to those of its input."""

    def __init__(self, teacher: Teacher, kind: str) -> None:
        self.teacher, self.fix = teacher, FIXES[kind]
        self.fingerprint = short_digest(kind, teacher.fingerprint)
        self.ranks = getattr(teacher, "ranks", 1)
        self.take_counts = getattr(teacher, "take_counts", dict)

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """Project images as `Teacher.project` says; the result is on the CPU."""
        return self.fix(self.teacher.project(restored, ids), restored.cpu()).clamp(0, 1)


def wavelet(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Combine the high frequencies of the image with the low ones of the reference (StableSR; Wang et al., 2024).

    Low frequencies are what remains after `LEVELS` levels of the a trous transform. Each level filters with [1 2 1] / 4
    in both directions, with gaps of 2^level pixels; the edge is repeated outside the image.

    Args:
        image, reference: (B, C, H, W).
    """
    return image - _low(image) + _low(reference)


def adain(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Give each channel of the image the mean and standard deviation of the reference's (Huang and Belongie, 2017).

    Args:
        image, reference: (B, C, H, W).
    """
    (mean, deviation), (other_mean, other_deviation) = _moments(image), _moments(reference)
    return (image - mean) / deviation * other_deviation + other_mean


FIXES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"wavelet": wavelet, "adain": adain}


def _low(x: torch.Tensor) -> torch.Tensor:
    """The low frequencies of (B, C, H, W), each channel by itself."""
    taps = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype, device=x.device) / 4
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3)
    for level in range(LEVELS):
        gap = 2**level
        padded = F.pad(x, (gap, gap, gap, gap), mode="replicate")
        x = F.conv2d(padded, kernel, dilation=gap, groups=x.shape[1])
    return x


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel, (B, C, 1, 1)."""
    variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
    return mean, (variance + 1e-5).sqrt()  # a flat channel must not divide by zero

"""Colour fix of a projected image: its detail, the restored image's colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from gmd_ray.hashing import short_digest
from gmd_ray.teachers.protocol import Teacher

LEVELS = 5


class ColorFixedTeacher:
    """Any teacher, with the colours of its input given back to its output."""

    def __init__(self, teacher: Teacher, kind: str) -> None:
        self.teacher, self.fix = teacher, FIXES[kind]
        self.fingerprint = short_digest(kind, teacher.fingerprint)
        self.ranks = getattr(teacher, "ranks", 1)

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """As `Teacher.project`."""
        return self.fix(self.teacher.project(restored, ids), restored.cpu()).clamp(0, 1)


def wavelet(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The reference's low frequencies under the image's high ones (StableSR; Wang et al., 2024).

    Low is what `LEVELS` levels of the a trous transform leave: a [1 2 1] / 4 filter in both directions, with gaps of
    2^level pixels, the edge repeated outside.

    Args:
        image, reference: (B, C, H, W).
    """
    return image - _low(image) + _low(reference)


def adain(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The image with the reference's mean and standard deviation in each channel (Huang and Belongie, 2017).

    Args:
        image, reference: (B, C, H, W).
    """
    (mean, deviation), (other_mean, other_deviation) = _moments(image), _moments(reference)
    return (image - mean) / deviation * other_deviation + other_mean


FIXES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"wavelet": wavelet, "adain": adain}


def _low(x: torch.Tensor) -> torch.Tensor:
    taps = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype, device=x.device) / 4
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3)
    for level in range(LEVELS):
        gap = 2**level
        padded = F.pad(x, (gap, gap, gap, gap), mode="replicate")
        x = F.conv2d(padded, kernel, dilation=gap, groups=x.shape[1])
    return x


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
    return mean, (variance + 1e-5).sqrt()  # a flat channel has no deviation to divide by

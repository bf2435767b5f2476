"""The rectified-flow ODE: time grid and Euler steps (teacher.md 0, 1.1).

t = 0 is the clean image, t = 1 noise; z_t = (1 - t) x + t eps and the model predicts v = eps - x, so that a step in
either direction is z += (t_next - t) v. Latents and sums stay in float32 whatever the model computes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

Velocity = Callable[[torch.Tensor, float, int], torch.Tensor]
"""(z, t, interval) -> v, all (B, S, D) float32; `interval` counts from the noisy end."""


def time_grid(steps: int, tokens: int, scheduler: Mapping[str, Any], strength: float = 1.0) -> list[float]:
    """`steps` + 1 times from noisy to clean, ending in 0.

    Args:
        tokens: packed image tokens S, on which FLUX's dynamic shift depends.
        scheduler: the FlowMatchEulerDiscreteScheduler config of the model directory.
        strength: where the grid starts before the shift, in (0, 1].
    """
    uniform = [strength * (1 - i / steps) for i in range(steps + 1)]
    if scheduler.get("use_dynamic_shifting", False):
        low, high = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
        base, top = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
        factor = math.exp(base + (top - base) * (tokens - low) / (high - low))
    else:
        factor = scheduler.get("shift", 1.0)
    return [factor * s / (1 + (factor - 1) * s) for s in uniform]


def invert(z: torch.Tensor, times: list[float], velocity: Velocity) -> torch.Tensor:
    """Clean to noisy: interval i runs from times[i + 1] to times[i], the last one first."""
    for i in reversed(range(len(times) - 1)):
        z = z + (times[i] - times[i + 1]) * velocity(z, times[i + 1], i)
    return z


def reconstruct(z: torch.Tensor, times: list[float], velocity: Velocity) -> torch.Tensor:
    """Noisy to clean: interval i runs from times[i] to times[i + 1]."""
    for i in range(len(times) - 1):
        z = z + (times[i + 1] - times[i]) * velocity(z, times[i], i)
    return z

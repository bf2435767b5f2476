"""The rectified-flow ODE: time grid and three solvers (teacher.md 0, 1.1).

t = 0 is the clean image, t = 1 noise; z_t = (1 - t) x + t eps and the model predicts v = eps - x, so that a step in
either direction is z += (t_next - t) v. Latents and sums stay in float32 whatever the model computes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch


class Slot(NamedTuple):
    """One evaluation of the velocity, named alike in both passes, so that they can be paired (teacher.md 1.1)."""

    interval: int
    """Counted from the noisy end."""
    middle: bool
    """At the middle of the interval, else where the pass enters it."""


Velocity = Callable[[torch.Tensor, float, Slot], torch.Tensor]
"""(z, t, slot) -> v; z and v are (B, S, D) float32."""


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


def integrate(
    z: torch.Tensor, times: list[float], velocity: Velocity, solver: str = "euler", *, inverse: bool = False
) -> torch.Tensor:
    """The whole grid in one direction.

    Args:
        z: (B, S, D) float32 at times[0], or at times[-1] with `inverse`.
        times: noisy to clean, as `time_grid` gives them.
        solver: euler; midpoint, second order at two evaluations an interval, which RF-Solver's update comes to;
            fireflow, which enters an interval with the midpoint velocity of the one before instead of a fresh one.
        inverse: clean to noisy.
    """
    last = None
    for i in _intervals(len(times) - 1, inverse):
        start, end = (times[i + 1], times[i]) if inverse else (times[i], times[i + 1])
        step = end - start
        v = last if solver == "fireflow" and last is not None else velocity(z, start, Slot(i, False))
        if solver != "euler":
            v = velocity(z + step / 2 * v, start + step / 2, Slot(i, True))
        z, last = z + step * v, v
    return z


def paired_slots(solver: str, intervals: int) -> set[Slot]:
    """The evaluations that both passes make.

    fireflow enters only the first interval of a pass with an evaluation, and that is not the same one in both.
    """
    return set(_slots(solver, intervals, inverse=True)) & set(_slots(solver, intervals, inverse=False))


def _slots(solver: str, intervals: int, *, inverse: bool) -> Iterator[Slot]:
    for n, i in enumerate(_intervals(intervals, inverse)):
        if solver != "fireflow" or n == 0:
            yield Slot(i, False)
        if solver != "euler":
            yield Slot(i, True)


def _intervals(count: int, inverse: bool) -> Iterator[int]:
    return reversed(range(count)) if inverse else iter(range(count))

"""Shares of depth and of intervals in `teacher.injection`, with the same meaning for every family of models."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

from gmd_ray.config import InjectionConfig
from gmd_ray.config.sections.checks import depth_share


def injected_intervals(injection: InjectionConfig, intervals: int) -> int:
    """The number of intervals of the reconstruction with injection, counted from the noisiest.

    Args:
        intervals: those that the reconstruction has.
    """
    steps = injection.steps
    if steps is None:
        return intervals
    return steps if isinstance(steps, int) else part_of(intervals, steps)


def last_blocks(names: Sequence[str], spec: str | Sequence[str]) -> list[str] | None:
    """The blocks that `teacher.injection.blocks=last:SHARE` selects; None if the value has another form.

    Args:
        names: all blocks of the model that can be injected, in the order in which they run.
    """
    share = depth_share(spec)
    return None if share is None else list(names[len(names) - part_of(len(names), share) :])


def part_of(count: int, share: float) -> int:
    """A share of `count` things, rounded to the nearest whole number, a half upwards; at least one, if there is one."""
    return min(count, max(1, floor(count * share + 0.5)))

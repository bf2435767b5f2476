"""The rectified-flow ODE of FLUX: its time grid and three solvers.

At t = 0 stands the clean image x, at t = 1 pure noise eps, and z_t = (1 - t) x + t eps lies between them. The model
predicts the velocity v = eps - x, so one step in either direction is z += (t_next - t) v. Latents and sums stay in
float32 whatever dtype the model computes in. See docs/method.md, "Schedule" and "Solver".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from gmd_ray.errors import ConfigError, nearest

SOLVERS = ("euler", "midpoint", "fireflow")


class Slot(NamedTuple):
    """One evaluation of the velocity within a pass.

    The inversion and the reconstruction name their evaluations alike, so that the reconstruction can find the keys and
    values that the inversion left on the same interval. See docs/method.md, "Injection".
    """

    interval: int
    """Number of the interval of the time grid, counted from the noisy end."""
    middle: bool
    """True for the evaluation at the middle of the interval, False for the one at the end where the pass enters it."""


Velocity = Callable[[torch.Tensor, float, Slot], torch.Tensor]
"""(z, t, slot) -> v; z and v are (B, S, D) float32."""


def time_grid(
    steps: int, tokens: int, scheduler: Mapping[str, Any], strength: float = 1.0, kind: str = "scheduler"
) -> list[float]:
    """The `steps` + 1 times of a pass, from noisy to clean; the last one is 0.

    Args:
        tokens: packed image tokens S, on which FLUX's dynamic shift depends.
        scheduler: the FlowMatchEulerDiscreteScheduler config of the model directory.
        strength: the first time of the grid before the shift, in (0, 1].
        kind: linear, FLUX.1's shift; empirical, FLUX.2's; scheduler, linear or constant as the config has it.
    """
    uniform = [strength * (1 - i / steps) for i in range(steps + 1)]
    if kind == "empirical":
        factor = math.exp(_empirical_mu(tokens, steps))
    elif kind == "linear" or scheduler.get("use_dynamic_shifting", False):
        # The logarithm of the shift grows linearly with the number of tokens, as FluxPipeline's calculate_shift has it.
        low, high = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
        base, top = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
        factor = math.exp(base + (top - base) * (tokens - low) / (high - low))
    else:
        factor = scheduler.get("shift", 1.0)
    # The shift keeps 0 and 1 in place and moves the times between them towards noise.
    return [factor * s / (1 + (factor - 1) * s) for s in uniform]


def _empirical_mu(tokens: int, steps: int) -> float:
    """The logarithm of FLUX.2's shift, as Flux2KleinPipeline's compute_empirical_mu has it.

    At 200 steps it is linear in the tokens, with FLUX.1's constants. Fewer steps come with a larger shift, by a line
    between the values for 200 and for 10 steps. Above 4300 tokens the number of steps does not count.
    """
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    return many + (few - many) * (200 - steps) / 190


def schedule(times: Sequence[float], solver: str, *, inverse: bool = False) -> list[tuple[Slot, float]]:
    """The evaluations of one pass in their order, each with the time at which it happens.

    Args:
        times: noisy to clean, as `time_grid` gives them.
        solver: euler, midpoint or fireflow; see `integrate`.
        inverse: the pass runs from clean to noisy.

    Raises:
        ConfigError: for an unknown solver.
    """
    if solver not in SOLVERS:
        raise ConfigError(f"teacher.solver={solver!r}: {nearest(solver, SOLVERS)}")
    evaluations = []
    for position, interval in enumerate(_intervals(len(times) - 1, inverse)):
        start, end = _ends(times, interval, inverse)
        # FireFlow enters every interval but the first with the middle velocity of the interval before.
        if solver != "fireflow" or position == 0:
            evaluations.append((Slot(interval, False), start))
        if solver != "euler":
            evaluations.append((Slot(interval, True), start + (end - start) / 2))
    return evaluations


def integrate(
    z: torch.Tensor, times: Sequence[float], velocity: Velocity, solver: str = "euler", *, inverse: bool = False
) -> torch.Tensor:
    """Integrate over the whole grid in one direction, with the evaluations that `schedule` lists.

    Args:
        z: (B, S, D) float32 at times[0], or at times[-1] with `inverse`.
        times: noisy to clean, as `time_grid` gives them.
        velocity: called once for each evaluation of the schedule, in its order.
        solver: euler; midpoint, of second order at two evaluations an interval, which equals RF-Solver's update;
            fireflow, which reuses the middle velocity of one interval to enter the next, of second order at one
            evaluation an interval and one more.
        inverse: integrate from clean to noisy.

    Returns:
        (B, S, D) float32 at the other end of the grid.

    Raises:
        ConfigError: for an unknown solver.
    """
    planned = dict(schedule(times, solver, inverse=inverse))
    v = z  # replaced before it is read: every schedule begins with an entry
    for interval in _intervals(len(times) - 1, inverse):
        start, end = _ends(times, interval, inverse)
        step = end - start
        entry, middle = Slot(interval, False), Slot(interval, True)
        if entry in planned:
            v = velocity(z, planned[entry], entry)
        # Without an entry, v is still the middle velocity of the interval before.
        if middle in planned:
            # Half a step with the velocity at the entry leads to the point where the whole step's velocity is taken.
            v = velocity(z + step / 2 * v, planned[middle], middle)
        z = z + step * v
    return z


def paired_slots(solver: str, intervals: int) -> set[Slot]:
    """The evaluations that the inversion and the reconstruction both make.

    FireFlow's entry into the first interval of a pass is not among them: the two passes begin at opposite ends.

    Raises:
        ConfigError: for an unknown solver.
    """
    grid = range(intervals, -1, -1)  # any times will do: only the slots count
    inversion, reconstruction = ({slot for slot, _ in schedule(grid, solver, inverse=back)} for back in (True, False))
    return inversion & reconstruction


def injected_slots(solver: str, intervals: int, injected: int) -> list[Slot]:
    """The evaluations whose keys and values pass from the inversion to the reconstruction.

    Args:
        intervals: intervals of the time grid.
        injected: how many of them, from the noisy end, are injected.

    Returns:
        the slots in the order in which the reconstruction evaluates them.

    Raises:
        ConfigError: for an unknown solver.
    """
    return sorted(slot for slot in paired_slots(solver, intervals) if slot.interval < injected)


def _intervals(count: int, inverse: bool) -> Iterator[int]:
    """The intervals in the order in which a pass crosses them."""
    return reversed(range(count)) if inverse else iter(range(count))


def _ends(times: Sequence[float], interval: int, inverse: bool) -> tuple[float, float]:
    """The times at which a pass enters and leaves an interval."""
    noisy, clean = times[interval], times[interval + 1]
    return (clean, noisy) if inverse else (noisy, clean)

"""The three solvers on an equation with a known solution, and which of their evaluations pair up."""

from __future__ import annotations

import math

import pytest
import torch

from gmd_ray.teachers.flux.sampler import Slot, integrate, paired_slots


def solve(solver: str, steps: int, *, inverse: bool) -> tuple[float, list[tuple[float, Slot]]]:
    """dz/dt = -z from z = 1 over [0, 1], in double precision: the end value and the evaluations made."""
    times = [1 - i / steps for i in range(steps + 1)]
    seen = []

    def velocity(z: torch.Tensor, t: float, slot: Slot) -> torch.Tensor:
        seen.append((t, slot))
        return -z

    return integrate(torch.ones(1, dtype=torch.float64), times, velocity, solver, inverse=inverse).item(), seen


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("fireflow", 2)])
@pytest.mark.parametrize("inverse", [True, False])
def test_order_of_convergence(solver: str, order: int, inverse: bool) -> None:
    exact = math.exp(-1 if inverse else 1)
    errors = [abs(solve(solver, steps, inverse=inverse)[0] - exact) for steps in (40, 80)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize(("solver", "count"), [("euler", 6), ("midpoint", 12), ("fireflow", 7)])
@pytest.mark.parametrize("inverse", [True, False])
def test_evaluations(solver: str, count: int, inverse: bool) -> None:
    seen = solve(solver, 6, inverse=inverse)[1]
    assert len(seen) == len({slot for _, slot in seen}) == count
    for t, slot in seen:
        # Intervals count from the noisy end; a pass enters one at its own end.
        entered = slot.interval + 1 if inverse else slot.interval
        assert t == pytest.approx(1 - (slot.interval + 0.5 if slot.middle else entered) / 6)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "fireflow"])
def test_paired_are_the_evaluations_of_both_passes(solver: str) -> None:
    passes = [{slot for _, slot in solve(solver, 4, inverse=inverse)[1]} for inverse in (True, False)]
    assert paired_slots(solver, 4) == passes[0] & passes[1]
    assert {slot.interval for slot in paired_slots(solver, 4)} == {0, 1, 2, 3}

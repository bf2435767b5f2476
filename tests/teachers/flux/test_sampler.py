"""The three solvers on an equation with a known solution, and the evaluations that pair up."""

from __future__ import annotations

import math

import pytest
import torch

from gmd_ray.errors import ConfigError
from gmd_ray.teachers.flux.sampler import Slot, injected_slots, integrate, paired_slots, schedule


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
        # Intervals are counted from the noisy end; the inversion enters each at its clean end.
        entered = slot.interval + 1 if inverse else slot.interval
        assert t == pytest.approx(1 - (slot.interval + 0.5 if slot.middle else entered) / 6)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "fireflow"])
def test_paired_are_the_evaluations_of_both_passes(solver: str) -> None:
    passes = [{slot for _, slot in solve(solver, 4, inverse=inverse)[1]} for inverse in (True, False)]
    assert paired_slots(solver, 4) == passes[0] & passes[1]
    assert {slot.interval for slot in paired_slots(solver, 4)} == {0, 1, 2, 3}


@pytest.mark.parametrize("solver", ["euler", "midpoint", "fireflow"])
@pytest.mark.parametrize("inverse", [True, False])
def test_the_schedule_lists_the_evaluations_that_are_made(solver: str, inverse: bool) -> None:
    made = [(slot, t) for t, slot in solve(solver, 5, inverse=inverse)[1]]
    assert schedule([1 - i / 5 for i in range(6)], solver, inverse=inverse) == made


def test_injected_slots_are_the_pairs_of_the_first_intervals() -> None:
    assert injected_slots("euler", 4, 2) == [Slot(0, False), Slot(1, False)]
    assert injected_slots("midpoint", 4, 1) == [Slot(0, False), Slot(0, True)]
    assert injected_slots("fireflow", 4, 2) == [Slot(0, True), Slot(1, True)]
    assert injected_slots("fireflow", 4, 0) == []


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'euler'"):
        integrate(torch.zeros(1), [1.0, 0.0], lambda z, t, slot: z, "eulr")

"""The projection against the benchmark's eager loop: the stock model with a stateful processor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gmd_ray.teachers.flux.teacher import FluxTeacher
from tests.benchmarks.eager_projection import project_eagerly, stock_model
from tests.benchmarks.teacher import injections, random_teacher, with_settings

STEPS = 2


@pytest.fixture(scope="module")
def base() -> Iterator[FluxTeacher]:
    """A tiny FLUX with as many blocks as FLUX.1-dev."""
    with random_teacher(torch.device("cpu"), text=6) as teacher:
        yield teacher


@pytest.mark.parametrize("name", [name for name in injections(STEPS) if name != "none"])
def test_projection_equals_the_eager_loop(base: FluxTeacher, name: str) -> None:
    teacher = with_settings(base, STEPS, injections(STEPS)[name])
    stock = stock_model(teacher)
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    found = teacher.project(images, ["a", "b"])
    eager = project_eagerly(teacher, stock, teacher.blocks, STEPS, images)
    torch.testing.assert_close(found, eager, atol=1e-4, rtol=0)
    # Injection changes the result, and the next call starts without it.
    plain = project_eagerly(teacher, stock, [], 0, images)
    assert (found - plain).abs().max() > 1e-2
    without = with_settings(base, STEPS, injections(STEPS)["none"])
    torch.testing.assert_close(without.project(images, ["a", "b"]), plain, atol=1e-4, rtol=0)

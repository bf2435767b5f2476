"""Recorded forwards: what is recorded, what is copied in, and equal results. A CPU repeats the work by calling it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gmd_ray.config import InjectionConfig
from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.acceleration.graphs import ForwardGraphs, ImmediateRecorder
from gmd_ray.teachers.flux.teacher import FluxTeacher
from tests.teachers.flux.test_teacher import config, ids, images


class Counting(ImmediateRecorder):
    """Counts recordings and repetitions, the first of which each recording makes itself."""

    def __init__(self) -> None:
        self.recorded = self.repeated = self.forgotten = 0

    def forget(self) -> None:
        self.forgotten += 1

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        self.recorded += 1
        replay = super().record(run)

        def counted() -> torch.Tensor:
            self.repeated += 1
            return replay()

        return counted


@pytest.mark.parametrize(
    ("change", "repeated"),
    [
        ({}, (6, 3)),  # of 2 x 3 evaluations, 2 write banks and 2 read them
        ({"prompt": "a sharp photo", "true_cfg": 3.0}, (9, 3)),
        ({"cache": "input"}, (6, 3)),
        ({"cache_dtype": "fp8"}, (6, 3)),
        ({"injection": InjectionConfig(blocks="single", tokens="image", steps=1)}, (6, 3)),
        ({"injection": InjectionConfig(blocks="double", tensors="v", steps=None)}, (6, 2)),
        ({"solver": "fireflow", "true_cfg": 3.0, "cache": "lockstep"}, None),
        ({"method": "sdedit", "prompt": "a sharp photo", "true_cfg": 2.0}, (6, 1)),
        ({"cache_location": "host"}, (0, 0)),
    ],
    ids=str,
)
def test_forwards_are_repeated(flux_dir: Path, change: dict[str, Any], repeated: tuple[int, int] | None) -> None:
    """Equal pixels; `repeated` has the evaluations of a projection, and the kinds of them, which are recorded once."""
    teacher, plain = (load_teacher(config(flux_dir, **change)) for _ in range(2))
    assert isinstance(teacher, FluxTeacher)
    recorder = Counting()
    teacher.projector.graphs = ForwardGraphs(recorder)
    x = images(2, 16, 24)
    for batch in (x, x.flip(-1), x):
        assert torch.equal(teacher.project(batch, ids(batch)), plain.project(batch, ids(batch)))
    assert repeated is None or (recorder.repeated, recorder.recorded) == (3 * repeated[0], repeated[1])
    before = recorder.recorded
    small = images(1, 16, 16)
    assert torch.equal(teacher.project(small, ids(small)), plain.project(small, ids(small)))
    assert recorder.recorded == 2 * before, "another shape is recorded anew"
    assert recorder.forgotten == (2 if before else 0)


def test_an_output_outlives_the_next_repetition() -> None:
    graphs = ForwardGraphs(ImmediateRecorder())
    first, second = (graphs("key", lambda inputs, _: inputs[0] * 2, [torch.tensor([value])]) for value in (1.0, 5.0))
    assert (first.item(), second.item()) == (2.0, 10.0)


def test_what_cannot_be_recorded_is_run() -> None:
    class Refusing:
        def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
            raise RuntimeError("operation not permitted when stream is capturing")

        def forget(self) -> None:
            pass

    graphs = ForwardGraphs(Refusing())
    assert [graphs("key", lambda inputs, _: inputs[0] + 1, [torch.tensor(n)]).item() for n in (1, 2)] == [2, 3]


@pytest.mark.gpu
def test_a_cuda_graph_gives_the_forwards_pixels(flux_dir: Path) -> None:
    settings = config(flux_dir, device="cuda", dtype="float32", prompt="a sharp photo", true_cfg=2.0)
    plain, teacher = load_teacher(settings), load_teacher(replace(settings, compile=True))
    assert isinstance(teacher, FluxTeacher)
    assert teacher.projector.graphs is not None
    x = images(1, 16, 24)  # each number of images would take its own minute of compiling
    for batch in (x, x.flip(-1)):
        found = teacher.project(batch, ids(batch))
        torch.testing.assert_close(found, plain.project(batch, ids(batch)), atol=1e-4, rtol=0)

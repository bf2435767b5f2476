"""Recorded forwards: what is recorded, what is copied in, and equal results. A tape of operations repeats the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gmd_ray.config import InjectionConfig
from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.acceleration.graphs import CudaRecorder, ForwardGraphs
from gmd_ray.teachers.flux.teacher import FluxTeacher
from tests.teachers.acceleration.replayed import TapeRecorder
from tests.teachers.flux.test_caches import HEIGHT, IDS, WIDTH, prepare
from tests.teachers.flux.test_teacher import config, ids, images


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
    recorder = TapeRecorder()
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
    graphs = ForwardGraphs(TapeRecorder())
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


@torch.no_grad()
def test_another_bank_of_the_same_latents_is_recorded_anew(flux_dir: Path) -> None:
    projector, plan = prepare(flux_dir)
    z = torch.randn(2, HEIGHT * WIDTH // 4, 48, generator=torch.Generator().manual_seed(4))
    plans = [plan, replace(plan, inject_text=False), replace(plan, blocks=plan.blocks[:1]), plan]
    expected = [projector(z, IDS, each) for each in plans]
    projector.graphs = ForwardGraphs(TapeRecorder())
    for each, pixels in zip(plans, expected, strict=True):
        assert torch.equal(projector(z, IDS, each), pixels)


@pytest.mark.parametrize("change", [{"cache_location": "host"}, {"cache": "lockstep"}, {"inject_steps": 0}], ids=str)
@torch.no_grad()
def test_recordings_are_gone_where_the_plan_has_no_room_for_them(flux_dir: Path, change: dict[str, Any]) -> None:
    """Banks, or a larger image, take all room of the device that the forwards leave."""
    projector, plan = prepare(flux_dir)
    z = torch.randn(1, HEIGHT * WIDTH // 4, 48, generator=torch.Generator().manual_seed(4))
    full = replace(plan, **change, repeated=False)
    recorder = TapeRecorder()
    expected, found = (projector(z, IDS, each) for each in (full, plan))
    projector.graphs = ForwardGraphs(recorder)
    assert torch.equal(projector(z, IDS, plan), found)
    recorded, repeated, forgotten = recorder.recorded, recorder.repeated, recorder.forgotten
    assert recorded >= 3
    assert torch.equal(projector(z, IDS, full), expected)
    assert (recorder.recorded, recorder.repeated, recorder.forgotten) == (recorded, repeated, forgotten + 1)
    assert torch.equal(projector(z, IDS, plan), found)
    assert recorder.recorded == 2 * recorded


class Stream:
    """Stands for a CUDA stream."""

    def wait_stream(self, other: Stream) -> None:
        pass


def test_recordings_share_a_stream_and_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of a pool is given to the recordings of one stream alone, so that each other would have its own."""
    usual, made, captures = Stream(), [], []
    now = [usual]

    def new(device: torch.device) -> Stream:
        made.append(Stream())
        return made[-1]

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        before, now[0] = now[0], stream
        yield
        now[0] = before

    @contextmanager
    def graph(one: object, *, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        captures.append((pool, stream))
        with on(stream):  # PyTorch's does not restore the stream after an error either
            yield

    stand_ins = {
        "Stream": new, "stream": on, "graph": graph, "graph_pool_handle": object, "CUDAGraph": object,
        "current_stream": lambda device: now[0], "set_stream": lambda stream: now.__setitem__(0, stream),
    }  # fmt: skip
    for name, value in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, value)
    recorder, seen = CudaRecorder(torch.device("cuda")), []

    def run() -> torch.Tensor:
        seen.append(now[0])
        if len(seen) == 6:
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.zeros(1)

    recorder.record(run)
    recorder.record(run)
    assert captures[0] == captures[1]
    assert seen == 4 * made, "the work runs once on that stream before it is recorded"
    recorder.forget()
    with pytest.raises(RuntimeError, match="capturing"):
        recorder.record(run)
    assert captures[2][0] is not captures[0][0], "memory that nobody uses is freed with its pool"
    assert now == [usual]
    assert len(made) == 1


@pytest.mark.gpu
def test_recordings_on_a_gpu_share_their_memory() -> None:
    device = torch.device("cuda")
    recorder, x = CudaRecorder(device), torch.ones(1 << 24, device=device)  # 64 MiB
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    works = [lambda n=n: ((x + n) * (x - n)).sum() for n in range(4)]
    replays = [recorder.record(work) for work in works]
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - before < 2 * 3 * x.nbytes
    assert [replay().item() for replay in replays] == pytest.approx([work().item() for work in works])


@pytest.mark.gpu
def test_a_cuda_graph_gives_the_forwards_pixels(flux_dir: Path) -> None:
    settings = config(flux_dir, device="cuda", dtype="float32", prompt="a sharp photo", true_cfg=2.0)
    plain, teacher = load_teacher(settings), load_teacher(replace(settings, compile=True))
    assert isinstance(teacher, FluxTeacher)
    assert teacher.projector.graphs is not None
    x = images(1, 16, 24)  # each number of images would take its own minute of compiling
    for batch in (x, x.flip(-1), images(1, 16, 16), x):
        found = teacher.project(batch, ids(batch))
        torch.testing.assert_close(found, plain.project(batch, ids(batch)), atol=1e-4, rtol=0)

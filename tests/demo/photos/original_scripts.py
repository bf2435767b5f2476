"""Runs of the scripts that trained the shipped models of the photographs, tiny and on the CPU.

The scripts are not part of the repository. Where they are at hand, the tests run them beside the trainers; elsewhere
the tests hold the numbers that these runs gave. The photographs are made by code, so that both see the same.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

HELD_OUT = 160
"""Tiles that the teacher's script keeps from its training."""
TEACHER_OPTIONS = ("--batch=8", "--single=1", "--heads=1", "--head-dim=16", "--muon-lr=0.2", "--adamw-lr=0.15")
"""Options of the teacher's script for `TEACHER_STEPS` steps; the rates are high since the warm-up lasts 150."""
TEACHER_STEPS, STUDENT_STEPS = 6, 5


class TrainingEndsError(Exception):
    """Ends the teacher's script after its training."""


def tiles(count: int = 232) -> np.ndarray:
    """Blocks of random colours with noise, uint8 (count, 128, 128, 3), by whole numbers alone."""
    rng = np.random.default_rng(5)
    blocks = rng.integers(20, 236, (count, 8, 8, 3)).repeat(16, 1).repeat(16, 2)
    return (blocks + rng.integers(-12, 13, blocks.shape)).astype(np.uint8)


def photographs() -> list[np.ndarray]:
    """Three pictures of different sizes, uint8."""
    joined = np.concatenate(list(tiles(8)), 1)
    return [joined[:, :200], joined[:100, 200:400], joined[:, 400:]]


def start_weights(model: torch.nn.Module) -> None:
    """Give a network random weights that depend on the names of the parameters alone."""
    with torch.no_grad():
        for number, (_, parameter) in enumerate(sorted(model.named_parameters())):
            generator = torch.Generator().manual_seed(number)
            parameter.copy_(0.06 * torch.randn(parameter.shape, generator=generator))


def load_script(path: Path) -> Any:
    """Import a script under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"original_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class TeacherRun:
    """The training by the teacher's script."""

    losses: list[float]
    average: dict[str, torch.Tensor]
    table: dict[str, torch.Tensor]
    shift: float
    scale: float


def run_teacher_script(script: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> TeacherRun:
    """Run `TEACHER_STEPS` steps from `start_weights`, with the random numbers of seed 7, and a clock that counts steps.

    The command is `train_teacher_gpu.py --data DIR --seconds 6 --no-compile` with `TEACHER_OPTIONS`.
    """
    module = load_script(script)
    codes = [cv2.imencode(".png", tile[..., ::-1])[1].tobytes() for tile in tiles()]
    (folder / "tiles.bin").write_bytes(b"".join(codes))
    np.save(folder / "tiles.npy", np.cumsum([0] + [len(code) for code in codes]))
    networks: list[torch.nn.Module] = []
    losses: list[float] = []
    drawn = itertools.count()
    steps = 0
    plain_init, plain_batch, plain_backward = module.Flux.__init__, module.Photos.batch, torch.Tensor.backward

    def init(self: Any, *args: Any) -> None:
        plain_init(self, *args)
        networks.append(self)

    def batch(self: Any, size: int) -> Any:
        nonlocal steps
        steps += 1
        if next(drawn) == 0:
            for network in networks:
                start_weights(network)
            torch.manual_seed(7)
        return plain_batch(self, size)

    def backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        losses.append(self.item())
        plain_backward(self, *args, **kwargs)

    def save(dest: Path, model: Any, table: Any, shift: float, scale: float) -> None:
        raise TrainingEndsError(model.state_dict(), table, shift, scale)

    monkeypatch.setattr(module.Flux, "__init__", init)
    monkeypatch.setattr(module.Photos, "batch", batch)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(module, "save", save)
    clock = SimpleNamespace(monotonic=lambda: steps if steps < TEACHER_STEPS else TEACHER_STEPS + 1)
    monkeypatch.setattr(module, "time", clock)
    arguments = [f"--data={folder}", f"--out={folder}", f"--seconds={TEACHER_STEPS}", "--no-compile", *TEACHER_OPTIONS]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(folder)
    with pytest.raises(TrainingEndsError) as end:
        module.main()
    monkeypatch.undo()
    return TeacherRun(losses, *end.value.args)


def run_student_script(script: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run `train_student.py 5` with a clock that counts steps; return its variables."""
    images = folder / "work/photo_world/data/bsds/BSDS500/data/images/train"
    held_out = folder / "work/photo_world/world/source_test_hq"
    for made in (images, held_out, folder / "shared/data/photo_demo"):
        made.mkdir(parents=True)
    for number, image in enumerate(photographs()):
        (images / f"{number}.jpg").write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    (held_out / "0.png").write_bytes(cv2.imencode(".png", tiles(1)[0])[1].tobytes())
    ticks = itertools.chain([0], itertools.count())
    monkeypatch.chdir(folder / "work")
    monkeypatch.setattr(sys, "argv", [str(script), str(STUDENT_STEPS)])
    return execute(script.read_text().replace("time.monotonic()", "clock()"), {"clock": lambda: next(ticks)})


def run_scorer_script(script: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Run `train_scorer.py STEPS`; return its variables, with the loss of each step in LOSSES.

    The script imports the toy world's trainer as commit 3184d7a has it, and runs with that commit's package alone.
    """
    data = folder / "work/photo_world/carry/pw"
    for made in (data, folder / "shared/data/photo_demo"):
        made.mkdir(parents=True)
    codes = [cv2.imencode(".png", tile[..., ::-1])[1].tobytes() for tile in tiles()]
    (data / "tiles.bin").write_bytes(b"".join(codes))
    np.save(data / "tiles.npy", np.cumsum([0] + [len(code) for code in codes]))
    os.chdir(folder / "work")
    sys.argv = [str(script), str(steps)]
    return execute(script.read_text().replace("o.zero_grad()", "LOSSES.append(loss.item()); o.zero_grad()"), {})


def execute(source: str, variables: dict[str, Any]) -> dict[str, Any]:
    """Run the text of a script, and give the libraries back the numbers of threads that it changes."""
    threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    namespace = {"__name__": "__main__", "LOSSES": [], **variables}
    try:
        exec(compile(source, "script", "exec"), namespace)
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv2_threads)
    return namespace


def print_numbers(scripts: Path, folder: Path, run: Callable[[], pytest.MonkeyPatch] = pytest.MonkeyPatch) -> None:
    """Print the numbers that the tests hold: of teacher and student, or of the scorer with the older package."""
    demo = scripts / "photo_demo"
    if "scorer" in sys.argv[3:]:
        scorer = run_scorer_script(demo / "train_scorer.py", folder, 4)
        print("scorer", scorer["LOSSES"], scorer["c"])
        return
    (folder / "teacher").mkdir(parents=True)
    teacher = run_teacher_script(scripts / "photo_world/train_teacher_gpu.py", folder / "teacher", run())
    print("teacher", teacher.losses, teacher.shift, teacher.scale)
    print("weights", {n: float(w.double().norm()) for n, w in list(teacher.average.items())})
    patch = run()
    student = run_student_script(demo / "train_student.py", folder / "student", patch)
    print("student", student["losses"], {n: float(w.double().norm()) for n, w in student["ema"].items()})
    patch.undo()


if __name__ == "__main__":
    print_numbers(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())

"""Latency of an adapted student against the unadapted one: they should differ by nothing but noise.

    python -m tests.benchmarks.latency [--baseline FILE --adapted FILE] [--side 256] [--pairs 40] [--cpu-time]

Without files the toy world's student is taken, and for the adapted one the same after a step of training, saved and
loaded again. The two are timed in turns, each first in every other pair, so that a busy machine is equally unkind to
both; where it is very busy, `--cpu-time` counts the seconds that the process computed instead of those that passed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import gmd_ray
from gmd_ray.config import StudentConfig
from gmd_ray.students import Student, load_student

DEMO = Path(gmd_ray.__file__).parent / "demo" / "toy" / "weights" / "student.safetensors"


@dataclass(frozen=True)
class Latency:
    """Latencies of two students on the same image."""

    baseline_ms: float
    """Median."""
    adapted_ms: float
    ratio: float
    """Ratio of the medians, adapted / baseline."""
    interval: tuple[float, float]
    """95%, by resampling the pairs."""
    parameters: tuple[int, int]


def trained_a_step(source: Path, target: Path, device: str) -> None:
    """Save the student of `source` after one step of Adam."""
    student = load_student(StudentConfig(path=str(source), device=device))
    student.module.train()
    lq = torch.rand(2, 3, 32, 32, device=next(student.module.parameters()).device)
    hq = lq.repeat_interleave(student.scale, -1).repeat_interleave(student.scale, -2)
    loss, _ = student.training_loss(lq, hq)
    loss.backward()
    torch.optim.Adam(student.module.parameters(), lr=1e-3).step()
    student.save(target)


def compare(baseline: Path, adapted: Path, side: int, pairs: int, device: str, cpu_time: bool = False) -> Latency:
    """Time both on one square image."""
    students = [load_student(StudentConfig(path=str(path), device=device)) for path in (baseline, adapted)]
    image = torch.rand(1, 3, side, side, device=next(students[0].module.parameters()).device)
    clock = time.process_time if cpu_time else time.perf_counter
    for student in students * 3:  # the first calls choose kernels
        _seconds(student, image, clock)
    times: list[tuple[float, float]] = []
    for i in range(pairs):
        order = (0, 1) if i % 2 == 0 else (1, 0)
        seconds = {which: _seconds(students[which], image, clock) for which in order}
        times.append((seconds[0], seconds[1]))
    draw = random.Random(0)
    resampled = sorted(_ratio(draw.choices(times, k=pairs)) for _ in range(1000))
    counts = [sum(p.numel() for p in student.module.parameters()) for student in students]
    return Latency(
        baseline_ms=1000 * statistics.median(a for a, _ in times),
        adapted_ms=1000 * statistics.median(b for _, b in times),
        ratio=_ratio(times),
        interval=(resampled[25], resampled[974]),
        parameters=(counts[0], counts[1]),
    )


def _ratio(times: list[tuple[float, float]]) -> float:
    return statistics.median(b for _, b in times) / statistics.median(a for a, _ in times)


def _seconds(student: Student, image: torch.Tensor, clock: Callable[[], float]) -> float:
    if image.is_cuda:
        torch.cuda.synchronize()
    start = clock()
    student.restore(image, ["latency"])
    if image.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, default=DEMO)
    parser.add_argument("--adapted", type=Path)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        adapted = args.adapted
        if adapted is None:
            adapted = Path(folder) / args.baseline.name
            trained_a_step(args.baseline, adapted, args.device)
        found = compare(args.baseline, adapted, args.side, args.pairs, args.device, args.cpu_time)
    print(
        f"{args.side}x{args.side}, {args.pairs} pairs, {found.parameters[0]:,} and {found.parameters[1]:,} parameters"
    )
    print(f"unadapted {found.baseline_ms:.2f} ms, adapted {found.adapted_ms:.2f} ms (medians)")
    low, high = found.interval
    print(f"adapted / unadapted: {found.ratio:.3f} (95% between {low:.3f} and {high:.3f})")


if __name__ == "__main__":
    main()

"""Teachers that write down when they worked, and what that says of the fleet."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gmd_ray.config import TeacherConfig
from gmd_ray.teachers import load_teacher


class TimedTeacher:
    """Leaves (pid, begin, end) of each call in a folder; sleeps instead of working where no teacher is given."""

    def __init__(self, spec: TimedTeacherSpec, cfg: TeacherConfig) -> None:
        self.spec, self.teacher = spec, load_teacher(cfg) if spec.real else None
        self.fingerprint = self.teacher.fingerprint if self.teacher else "sleep"

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        begin = time.time()
        if self.teacher:
            restored = self.teacher.project(restored, ids)
        else:
            time.sleep(self.spec.latency * len(ids))
        with open(f"{self.spec.log}/{os.getpid()}", "a") as file:
            file.write(json.dumps([begin, time.time(), len(ids)]) + "\n")
        return restored


@dataclass(frozen=True)
class TimedTeacherSpec:
    log: str
    latency: float = 0.0
    real: bool = False

    def __call__(self, cfg: TeacherConfig) -> TimedTeacher:
        return TimedTeacher(self, cfg)


class Calls:
    """Times that the teachers of a run left."""

    def __init__(self, log: Path) -> None:
        self.by_worker: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
        for file in log.iterdir():
            self.by_worker[file.name] = [tuple(json.loads(line)) for line in file.read_text().splitlines()]
        everything = [call for calls in self.by_worker.values() for call in calls]
        self.first, self.last = min(c[0] for c in everything), max(c[1] for c in everything)
        self.all_up = max(calls[0][0] for calls in self.by_worker.values())
        self.tail_from = min(calls[-1][1] for calls in self.by_worker.values())

    def busy(self, begin: float, end: float) -> float:
        """Share of replicas x time between two moments that was spent in calls."""
        spent = sum(
            max(0.0, min(call[1], end) - max(call[0], begin)) for calls in self.by_worker.values() for call in calls
        )
        return spent / len(self.by_worker) / (end - begin)

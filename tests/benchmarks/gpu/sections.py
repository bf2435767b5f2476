"""Sections of a benchmark that share one process and one budget of time: an error in one leaves the others alone."""

from __future__ import annotations

import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def clock() -> float:
    """Seconds, once the GPU has done what was asked of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(call: Callable[[], object], budget: float = 0.15) -> float:
    """Median seconds of a call, by events on a GPU; one call on a CPU."""
    call()
    begun = clock()
    call()
    once = max(clock() - begun, 1e-5)
    if not torch.cuda.is_available():
        return once
    marks = [[torch.cuda.Event(enable_timing=True) for _ in "se"] for _ in range(max(3, min(200, int(budget / once))))]
    for start, end in marks:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in marks) / 1e3


class Sections:
    """Runs sections in turn, prints their lines with the time, and keeps their rows for a file."""

    def __init__(self, budget_s: float, out: Path | None = None) -> None:
        """
        Args:
            budget_s: a section that needs more than is left of it is skipped, by name.
            out: folder for `results.json`, rewritten after each section.
        """
        self._begun, self._budget, self._out = time.perf_counter(), budget_s, out
        self.rows: list[dict[str, Any]] = []
        self.failed: list[str] = []
        self.skipped: list[str] = []

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self._begun:6.1f} s] {text}", flush=True)

    def keep(self, label: str, **values: Any) -> None:
        self.rows.append({"label": label, **values})

    @contextmanager
    def section(self, name: str, needs_s: float = 0.0) -> Iterator[bool]:
        """Yields False where the time left is below `needs_s`; the body is to look at it."""
        left = self._budget - (time.perf_counter() - self._begun)
        if left < needs_s:
            self.skipped.append(name)
            self.say(f"SKIPPED {name}: needs about {needs_s:.0f} s, {left:.0f} s are left")
            yield False
            return
        try:
            yield True
        except Exception:  # noqa: BLE001 -- the other sections go on
            self.failed.append(name)
            self.say(f"FAILED {name}\n{traceback.format_exc()[-1500:]}")
        if self._out is not None:
            (self._out / "results.json").write_text(json.dumps(self.rows, indent=1))

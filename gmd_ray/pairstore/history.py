"""`runs.json`: when each run over a store began, with how many rows, and how long it took; saved during the run."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from gmd_ray.pairstore.store import PairStore

log = logging.getLogger("gmd_ray.generation")

RUNS_FILE = "runs.json"
SAVE_EVERY_S = 30.0
"""Seconds between saves; a driver that is killed loses the time since the last one."""

Run = dict[str, Any]
"""Keys: `began` (seconds since the epoch), `before` (rows when it began), `images` (rows made), `seconds`, and in a run
that came to its end `teacher`, the counts of the teacher's stage."""


class RunClock:
    """The entry of the run that is going on; made once it is known that images are left to do."""

    def __init__(self, store: PairStore, before: int) -> None:
        self._store, self._earlier = store, read_runs(store)
        self._start = self._saved = time.monotonic()
        self._run: Run = {"began": time.time(), "before": before, "images": 0, "seconds": 0.0}
        self.save()

    def count(self, images: int) -> None:
        """Add rows that were written."""
        self._run["images"] += images
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            self.save()

    def note(self, counts: Mapping[str, int]) -> None:
        """Add what the teacher has counted; `save` writes it."""
        self._run["teacher"] = dict(counts)

    def save(self) -> None:
        """Write the entry. A failure is logged and does not end the run: only its duration would be lost."""
        self._saved = time.monotonic()
        self._run["seconds"] = self._saved - self._start
        try:
            self._store.write(RUNS_FILE, [*self._earlier, self._run])
        except OSError as error:
            log.warning("%s/%s: not written: %s", self._store.url, RUNS_FILE, error)


def read_runs(store: PairStore) -> list[Run]:
    """Read all runs, the oldest first; empty for a store made before this file existed."""
    return list(store.read(RUNS_FILE) or [])


def wall_seconds(runs: list[Run]) -> float | None:
    """Add up the seconds of all runs; None where the store has rows that are older than the first of them."""
    return sum(run["seconds"] for run in runs) if runs and runs[0]["before"] == 0 else None


def step_cache_counts(runs: list[Run]) -> dict[str, int] | None:
    """Evaluations of the teacher in all runs, and those that its step cache skipped; None where no run had one."""
    counted = [run["teacher"] for run in runs if run.get("teacher", {}).get("evaluations")]
    if not counted:
        return None
    return {key: sum(counts.get(key, 0) for counts in counted) for key in ("evaluations", "skipped")}


def images_per_second(runs: list[Run]) -> float | None:
    """Rate of the last run that made rows; None where none did."""
    made = [run for run in runs if run["images"] and run["seconds"]]
    return made[-1]["images"] / made[-1]["seconds"] if made else None

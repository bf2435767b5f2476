"""The runs over a store: when each began, from how many rows, and how long it has taken; kept while it works."""

from __future__ import annotations

import logging
import time
from typing import Any

from gmd_ray.pairstore.store import PairStore

log = logging.getLogger("gmd_ray.generation")

RUNS_FILE = "runs.json"
SAVE_EVERY_S = 30.0
"""A driver that is killed loses the time since it last saved."""

Run = dict[str, Any]
"""began (seconds of the epoch), before (rows when it began), images, seconds."""


class RunClock:
    """One run's entry, from the moment it has images to work off."""

    def __init__(self, store: PairStore, before: int) -> None:
        self._store, self._earlier = store, read_runs(store)
        self._start = self._saved = time.monotonic()
        self._run: Run = {"began": time.time(), "before": before, "images": 0, "seconds": 0.0}
        self.save()

    def count(self, images: int) -> None:
        """That many rows more are written."""
        self._run["images"] += images
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Does not end a run where it fails: all that is lost is how long it took."""
        self._saved = time.monotonic()
        self._run["seconds"] = self._saved - self._start
        try:
            self._store.write(RUNS_FILE, [*self._earlier, self._run])
        except OSError as error:
            log.warning("%s/%s: not written: %s", self._store.url, RUNS_FILE, error)


def read_runs(store: PairStore) -> list[Run]:
    """All runs, the oldest first; empty for a store that is older than this file."""
    return list(store.read(RUNS_FILE) or [])


def wall_seconds(runs: list[Run]) -> float | None:
    """Of all runs together; None where rows are older than the first of them."""
    return sum(run["seconds"] for run in runs) if runs and runs[0]["before"] == 0 else None


def images_per_second(runs: list[Run]) -> float | None:
    """Of the last run that made any."""
    made = [run for run in runs if run["images"] and run["seconds"]]
    return made[-1]["images"] / made[-1]["seconds"] if made else None

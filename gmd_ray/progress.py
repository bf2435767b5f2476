"""Reporting of a stage while it runs: a recorder for tracked figures, and a progress bar or log lines."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from gmd_ray.text import printable

log = logging.getLogger("gmd_ray")


class Recorder(Protocol):
    """Receives the parameters, metrics and files of a stage.

    Recorders must support pickling, as Ray Train's controller holds a copy.
    """

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def artifact(self, path: str, folder: str | None = None) -> None:
        """Keep a copy of a local file, under `folder` of the run's artifacts."""

    def stage(self, name: str) -> contextlib.AbstractContextManager[Recorder]:
        """Open a child run. A resumed run continues its child of the same name."""


BAR_S = 1.0
"""Seconds between two refreshes of a bar's clock."""


class NullRecorder:
    """A recorder that keeps nothing, for runs without tracking."""

    unsent = ""
    """Nothing waits to be sent."""

    def params(self, values: Mapping[str, Any]) -> None:
        pass

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        pass

    def tags(self, values: Mapping[str, str]) -> None:
        pass

    def artifact(self, path: str, folder: str | None = None) -> None:
        pass

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[NullRecorder]:
        yield self


class Progress:
    """A context manager that shows a bar on a terminal, and elsewhere logs a line per interval, even without news.

    The line has counts, rate and remaining time. The remaining time is estimated at the last update, less the time
    since then.

    Args:
        label: name of the work.
        total: number of items.
        unit: name of an item.
        interval_s: seconds between log lines.
        initial: number of items that an earlier run finished; they count as done but not towards the rate.
    """

    def __init__(self, label: str, total: int, unit: str = "img", interval_s: float = 10.0, initial: int = 0) -> None:
        self.label, self.total, self.unit, self.interval_s = printable(label), total, unit, interval_s
        self.done = self._initial = initial
        self.counts: dict[str, Any] = {}
        self._share, self._note = 0.0, ""
        self._start = self._last = self._news = time.monotonic()
        self._ended = threading.Event()
        self._timer: threading.Thread | None = None
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=initial, desc=self.label, unit=unit, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        # Loading a model or running a large batch takes minutes without an update. A thread keeps the log or the bar's
        # clock moving, so that the job does not look dead.
        self._timer = threading.Thread(target=self._tick, name=f"progress-{self.label}", daemon=True)
        self._timer.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        if self._timer is not None:
            self._timer.join()
        if self._bar is not None:
            self._bar.close()
        else:
            log.info("%s", self.line())

    def update(self, n: int = 1, **counts: Any) -> None:
        """Add `n` finished items, and set the counts shown beside them."""
        self.done += n
        self.counts.update((key, printable(n) if isinstance(n, str) else n) for key, n in counts.items())
        self._share, self._note = 0.0, ""
        if self._bar is not None:
            self._bar.update(n)
        self._tell()

    def partly(self, items: float, note: str) -> None:
        """Show the progress of unfinished items: `items`, a fraction too, count as done, and `note` describes them."""
        self._share, self._note = items, printable(note)
        self._tell()

    def _tell(self) -> None:
        now = self._news = time.monotonic()
        if self._bar is not None:
            note = {"now": self._note} if self._note else {}
            self._bar.set_postfix({**self.counts, **note})
        elif now - self._last >= self.interval_s:
            self._last = now
            log.info("%s", self.line())

    def _tick(self) -> None:
        """Log a line whenever an interval has passed without one; on a terminal, refresh the bar's clock."""
        wait = self.interval_s
        while self._bar is not None and not self._ended.wait(BAR_S):
            self._bar.refresh()
        while not self._ended.wait(wait):
            now = time.monotonic()
            wait = self.interval_s - (now - self._last)
            if wait <= 0:
                self._last, wait = now, self.interval_s
                log.info("%s | nothing new for %s", self.line(), duration(now - self._news))

    def line(self) -> str:
        """Return the log line: `label 120/600 img (20%) | ok=118 failed=2 | 4.1 img/s | 1m57s left`."""
        now = time.monotonic()
        elapsed = max(now - self._start, 1e-9)
        made = self.done + self._share - self._initial
        rate = made / elapsed
        parts = [f"{self.label} {self.done}/{self.total} {self.unit} ({100 * self.done / max(self.total, 1):.0f}%)"]
        if self.counts:
            parts.append(" ".join(f"{key}={value}" for key, value in self.counts.items()))
        if self._note:
            parts.append(self._note)
        parts.append(f"{rate:.2g} {self.unit}/s" if rate < 10 else f"{rate:.0f} {self.unit}/s")
        if self.done >= self.total:
            parts.append(f"done in {duration(elapsed)}")
        elif made > 0:
            left = (self.total - self.done - self._share) * (self._news - self._start) / made - (now - self._news)
            if left > 0:
                parts.append(f"{duration(left)} left")
        return " | ".join(parts)


def duration(seconds: float) -> str:
    """Format seconds as `45s`, `1m57s` or `2h05m`."""
    minutes, secs = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{secs:02d}s" if minutes else f"{secs}s"

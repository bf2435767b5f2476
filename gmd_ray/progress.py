"""What a stage says while it runs: a recorder for figures that last, a progress line for the person who waits."""

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
    """Where a stage leaves its parameters, metrics and files. Must pickle: Ray Train's controller holds a copy."""

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def artifact(self, path: str, folder: str | None = None) -> None:
        """Keep a copy of a local file, under `folder` of the run's artifacts."""

    def stage(self, name: str) -> contextlib.AbstractContextManager[Recorder]:
        """A child run; a run that is resumed continues the child of the same name."""


BAR_S = 1.0
"""Between two looks at a bar's clock."""


class NullRecorder:
    """Keeps nothing; what a stage uses when nobody tracks it."""

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
    """A bar on a terminal; elsewhere one log line per interval with counts, rate and time left, news or none.

    Used as a context manager; `update(n, **counts)` adds n done items and sets the counts shown beside them.
    `initial` items were done by an earlier run; they count as done, not towards the rate. `partly` tells of items that
    take long how far they are. The time left is that of the last news, less what has passed since.
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
        # Models load and large batches run for minutes without an update: a silent log looks like a dead job, and so
        # does a bar whose clock stands still.
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
        self.done += n
        self.counts.update((key, printable(n) if isinstance(n, str) else n) for key, n in counts.items())
        self._share, self._note = 0.0, ""
        if self._bar is not None:
            self._bar.update(n)
        self._tell()

    def partly(self, items: float, note: str) -> None:
        """Say how far what is in work is: `items` of it count as done, fractions too, and what it is: `note`."""
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
        """Log a line whenever an interval has passed without one; on a terminal, keep the bar's clock going."""
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
        """The log line: `label 120/600 img (20%) | ok=118 failed=2 | 4.1 img/s | 1m57s left`."""
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
    """`45s`, `1m57s` or `2h05m`."""
    minutes, secs = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{secs:02d}s" if minutes else f"{secs}s"

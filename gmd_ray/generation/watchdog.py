"""A bound on the time that one batch may take in a stage."""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gmd_ray.config import GenerationConfig

SLACK_S = 90.0
"""Time for a watchdog to end its process in order, in seconds. After that it is ended from outside of Python."""


@dataclass(frozen=True)
class Bound:
    """Time that a batch may take."""

    batch_s: float = 0.0
    """Seconds, whatever the size of the batch. 0 allows any time."""
    image_s: float = 0.0
    """Seconds for each image of the batch; they count if their sum is more than `batch_s`."""

    def of(self, images: int) -> float:
        """Return the seconds that a batch of so many images may take; 0 for any time."""
        return max(self.batch_s, images * self.image_s) if self.batch_s else 0.0


def batch_bound(generation: GenerationConfig) -> Bound:
    """Return the bound that the settings mean: `batch_timeout_s`, else one derived from `no_progress_timeout_s`.

    An image that hangs must be given up before the run is. It is tried in its batch and then alone, `max_attempts`
    times in all (at least twice), and models are loaded again between, which is counted as two attempts more; each may
    take an equal share of the run's time. A healthy image may take the run's time divided by `rows_per_block`, since
    that setting is to be longer than a block of them takes.
    """
    if generation.batch_timeout_s is not None:
        return Bound(generation.batch_timeout_s)
    patience = generation.no_progress_timeout_s
    return Bound(patience / (max(generation.max_attempts, 2) + 2), patience / generation.rows_per_block)


class Watchdog:
    """Ends the process in which a piece of work takes too long. Nothing gentler stops a model that hangs."""

    def __init__(self, bound: Bound, tell: Callable[[Sequence[str]], None], before_leaving: Callable[[], None]):
        """Set the bound.

        Args:
            bound: how long work may take. Nothing is watched if it allows any time.
            tell: is called with the ids at work as soon as the bound is passed.
            before_leaving: is called before the process is ended. If the work ends meanwhile, the process goes on.
        """
        self.bound, self._tell, self._before_leaving = bound, tell, before_leaving

    @contextmanager
    def over(self, ids: Sequence[str]) -> Iterator[None]:
        """Watch over the work on these ids. A process may have one piece of work watched at a time."""
        seconds = self.bound.of(len(ids))
        if not seconds:
            yield
            return
        ended = threading.Event()
        timer = threading.Timer(seconds, self._expired, (ids, ended))
        timer.daemon = True
        timer.start()
        # Native code that hangs while it holds Python's global lock stops the timer's thread too.
        faulthandler.dump_traceback_later(seconds + SLACK_S, exit=True, file=2)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            ended.set()
            timer.cancel()

    def _expired(self, ids: Sequence[str], ended: threading.Event) -> None:
        if ended.is_set():
            return
        self._tell(ids)
        self._before_leaving()
        if not ended.is_set():
            os._exit(1)

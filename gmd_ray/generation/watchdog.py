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
"""For a watchdog to leave its process in order; after that it is ended from outside of Python."""


@dataclass(frozen=True)
class Bound:
    """Seconds that a batch may take."""

    batch_s: float = 0.0
    """Whatever its size; 0 for any time."""
    image_s: float = 0.0
    """For each of its images, where that is more."""

    def of(self, images: int) -> float:
        """For a batch of so many images."""
        return max(self.batch_s, images * self.image_s) if self.batch_s else 0.0


def batch_bound(generation: GenerationConfig) -> Bound:
    """The bound that the settings mean.

    Where nothing is set, so much that an image that hangs is given up before the run is: it is tried in its batch and
    then alone, `max_attempts` times in all, and the models are loaded again between. But never less than healthy
    images may take: `no_progress_timeout_s` is to be longer than `rows_per_block` of them.
    """
    if generation.batch_timeout_s is not None:
        return Bound(generation.batch_timeout_s)
    patience = generation.no_progress_timeout_s
    return Bound(patience / (max(generation.max_attempts, 2) + 2), patience / generation.rows_per_block)


class Watchdog:
    """Ends the process in which a piece of work takes too long; nothing gentler stops a model that hangs."""

    def __init__(self, bound: Bound, tell: Callable[[Sequence[str]], None], before_leaving: Callable[[], None]):
        """Set the bound.

        Args:
            bound: without one nothing is watched.
            tell: is called with the ids at work as soon as the bound is passed.
            before_leaving: is called before the process is ended. Work that ends meanwhile is let go on.
        """
        self.bound, self._tell, self._before_leaving = bound, tell, before_leaving

    @contextmanager
    def over(self, ids: Sequence[str]) -> Iterator[None]:
        """Watch over the work on these ids, one piece of work at a time in a process."""
        seconds = self.bound.of(len(ids))
        if not seconds:
            yield
            return
        ended = threading.Event()
        timer = threading.Timer(seconds, self._expired, (ids, ended))
        timer.daemon = True
        timer.start()
        # Native code that hangs without letting go of Python's lock stops the timer too.
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

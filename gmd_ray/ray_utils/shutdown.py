"""An orderly end of a run on SIGTERM, as `ray job stop` and spot notices send it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

from gmd_ray.errors import ExitCode

log = logging.getLogger("gmd_ray.generation")

ASKED = threading.Event()
"""Set once this process is asked to end in order, cleared when a `StopRequest` begins. The stream then reads no more.

It is global because `blocks_in_flight.BlocksInFlight` looks at it in a thread of Ray's, which no argument reaches."""


class StopRequest:
    """Turns the first SIGTERM into a request, for the length of a `with` block. A second SIGTERM ends at once.

    After the request nothing more is read and no more rows are admitted to the first stages, so that the stream runs
    dry: batches that the teacher has begun are finished, scored and written. What is not written within `grace_s`
    seconds is left to the next run, as after a kill. If the teacher has begun nothing, for example while the models
    load, the process ends at once.
    """

    def __init__(self, grace_s: float) -> None:
        """Set the time between the request and the end, in seconds. 0 ends at once."""
        self._grace_s = grace_s
        self._admit_no_more: Callable[[float], bool] | None = None
        self._over = threading.Event()
        self._ending = threading.Lock()

    def __enter__(self) -> StopRequest:
        ASKED.clear()
        # ray.init replaces earlier handlers by its own, so this comes after it.
        self._in_main = threading.current_thread() is threading.main_thread()
        if self._in_main:
            self._before = signal.signal(signal.SIGTERM, self._on_sigterm)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._ending:
                self._over.set()
        finally:
            if self._in_main:
                signal.signal(signal.SIGTERM, self._before)

    def attach(self, admit_no_more: Callable[[float], bool]) -> None:
        """Note that work is in flight from now on.

        Args:
            admit_no_more: is called, in a thread, with the grace in seconds when the process is asked to end. It stops
                the admission of rows, and returns whether there is anything to wait for (`AttemptLog.close`).
        """
        self._admit_no_more = admit_no_more

    def exit_if_requested(self) -> None:
        """End the process if it was asked to. To be called once the stream has run dry, and once all is done.

        Raises:
            SystemExit: with `ExitCode.INTERRUPTED`.
        """
        if ASKED.is_set():
            log.warning("stopped; what was in flight is written, the same command goes on from there")
            raise SystemExit(ExitCode.INTERRUPTED)

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        if ASKED.is_set() or self._admit_no_more is None or self._grace_s <= 0:
            log.warning("SIGTERM: stopping at once; the same command takes up what is missing")
            raise SystemExit(ExitCode.INTERRUPTED)
        ASKED.set()
        log.warning("SIGTERM: finishing what is in flight, for %g s at most", self._grace_s)
        threading.Thread(target=self._close, name="gmd-stop", daemon=True).start()

    def _close(self) -> None:
        assert self._admit_no_more is not None
        if self._admit_no_more(self._grace_s):
            log.info("SIGTERM: the workers are told to begin no further image")
            self._over.wait(self._grace_s)
        with self._ending:  # so that a handler of SIGTERM that comes after this one is not hit
            if not self._over.is_set():
                # A second signal, not an exception in this thread: it also wakes the main thread where it waits.
                os.kill(os.getpid(), signal.SIGTERM)

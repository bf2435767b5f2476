"""SIGTERM, as `ray job stop` and spot notices send it: finish what is in flight, write it, end."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType, TracebackType

import ray
from ray.exceptions import RayError

log = logging.getLogger("gmd_ray.generation")

ASKED = threading.Event()
"""Whether this process was asked to end in order, since the latest `StopRequest` began: the stream reads no more
(`cluster.BlocksInFlight`, in a thread of Ray's that no argument reaches)."""
EXIT_CODE = 143
"""128 + SIGTERM, as shells have it."""


class StopRequest:
    """Turns the first SIGTERM into a request, for the length of a `with` block; the second ends at once.

    On the request nothing more is read and the ledger admits no more rows, so that the stream runs dry: batches that
    the teacher has begun are finished, scored and written. What does not get there in `grace_s` seconds is left to the
    next run, as after a kill. Where the teacher has begun none, as while the models load, it ends at once.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._ledger: ray.actor.ActorHandle | None = None
        self._over = threading.Event()
        self._ending = threading.Lock()

    def __enter__(self) -> StopRequest:
        ASKED.clear()
        # ray.init puts its own handler in the place of earlier ones, so this is done after it.
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

    def closes(self, ledger: ray.actor.ActorHandle) -> None:
        """From now on there is something in flight, that this ledger admitted."""
        self._ledger = ledger

    def leave(self) -> None:
        """End the process where it was asked to; to be called once the stream has run dry, and once all is done.

        Raises:
            SystemExit: with EXIT_CODE.
        """
        if ASKED.is_set():
            log.warning("stopped; what was in flight is written, the same command goes on from there")
            raise SystemExit(EXIT_CODE)

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        if ASKED.is_set() or self._ledger is None or self._grace_s <= 0:
            log.warning("SIGTERM: stopping at once; the same command takes up what is missing")
            raise SystemExit(EXIT_CODE)
        ASKED.set()
        log.warning("SIGTERM: finishing what is in flight, for %g s at most", self._grace_s)
        threading.Thread(target=self._close, name="gmd-stop", daemon=True).start()

    def _close(self) -> None:
        assert self._ledger is not None
        worth_it = True
        try:
            worth_it = ray.get(self._ledger.close.remote(), timeout=self._grace_s)
        except RayError:  # the ledger is gone; what is in flight may get through all the same
            log.debug("the ledger does not answer", exc_info=True)
        if worth_it:
            self._over.wait(self._grace_s)
        with self._ending:  # not to hit whoever handles SIGTERM after us
            if not self._over.is_set():
                # A second signal, not an exception in this thread: it also wakes the main thread where it waits.
                os.kill(os.getpid(), signal.SIGTERM)

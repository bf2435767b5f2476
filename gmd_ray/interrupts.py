"""Handling of Ctrl-C: at any moment, a command ends with one sentence on the terminal and exit status 130."""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

STATUS = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as in shells."""
SENTENCE = "gmd-ray: stopped; the same command takes up where this one left off"

_AT_LOCKS = ("_acquireLock", "_releaseLock", "acquire", "release")
"""Functions of the standard library (such as logging's) in which an exception would leave a lock held forever."""


def interruptible(command: Callable[[], int]) -> int:
    """Run `command` and return its status, or print the sentence and return 130 if Ctrl-C interrupted it.

    After Ctrl-C, any exception counts as the interruption: an interrupted import ends as an ImportError, and database
    drivers raise errors of their own. A second Ctrl-C also interrupts the cleanup after the first. If SIGINT is ignored
    or has a foreign handler, that is left as it is.
    """
    if threading.current_thread() is not threading.main_thread() or not _is_free():
        try:
            return command()
        except KeyboardInterrupt:
            return _told()
    heard = threading.Event()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        heard.set()
        if frame is not None and frame.f_code.co_name in _AT_LOCKS:
            _again()
            return
        raise KeyboardInterrupt

    def unheard(what: sys.UnraisableHookArgs) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            _again()
        else:
            hook(what)

    before, hook = signal.signal(signal.SIGINT, interrupt), sys.unraisablehook
    sys.unraisablehook = unheard
    _at_exit(_hear_no_more)
    try:
        return command()
    except BaseException as error:
        if not heard.is_set() and not isinstance(error, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, _end)  # the cleanup is done, so another Ctrl-C may end the process at once
        return _told()
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)
        sys.unraisablehook = hook
        _at_exit(_end_at_next)


def _again() -> None:
    """Send the signal again after a moment, since an exception would do harm here, or be dropped.

    Python drops exceptions in fork handlers, finalizers and callbacks of weak references.
    """

    def send() -> None:
        time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    # Not threading.Thread: the signal may have come while a lock of `threading` is held.
    _thread.start_new_thread(send, ())


def _is_free() -> bool:
    """Tell whether SIGINT has Python's default handler."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _told() -> int:
    print(SENTENCE, file=sys.stderr, flush=True)
    return STATUS


def _at_exit(step: Callable[[], None]) -> None:
    """Register an exit handler anew. Handlers run in reverse order of registration, with Ray's own in between."""
    atexit.unregister(step)
    atexit.register(step)


def _end_at_next() -> None:
    """Let Ctrl-C end the process at once during shutdown, where an exception would only print a traceback."""
    if _is_free():
        signal.signal(signal.SIGINT, _end_told)


def _hear_no_more() -> None:
    """Ignore Ctrl-C in the last step of shutdown, where the system's default would kill the process silently."""
    if signal.getsignal(signal.SIGINT) in (_end, _end_told):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_told(signum: int, frame: FrameType | None) -> None:
    _told()
    os._exit(STATUS)


def _end(signum: int, frame: FrameType | None) -> None:
    os._exit(STATUS)

"""Handling of Ctrl-C: at any moment, a command ends with one sentence on the terminal and its own exit status."""

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

from gmd_ray.errors import ExitCode

SENTENCE = "gmd-ray: stopped; the same command takes up where this one left off"

_AT_LOCKS = ("_acquireLock", "_releaseLock", "acquire", "release")
"""Functions of the standard library (such as logging's) in which an exception would leave a lock held forever."""


def interruptible(command: Callable[[], int]) -> int:
    """Run `command` and return its status, or print the sentence and return INTERRUPTED if Ctrl-C interrupted it.

    After Ctrl-C, any exception counts as the interruption: an interrupted import ends as an ImportError, and database
    drivers raise errors of their own. A second Ctrl-C also interrupts the cleanup after the first. If SIGINT is ignored
    or has a foreign handler, that is left as it is.
    """
    if threading.current_thread() is not threading.main_thread() or not _has_default_handler():
        try:
            return command()
        except KeyboardInterrupt:
            return _report()
    interrupted = threading.Event()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        interrupted.set()
        if frame is not None and frame.f_code.co_name in _AT_LOCKS:
            _send_again()
            return
        raise KeyboardInterrupt

    def unraisable(what: sys.UnraisableHookArgs) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            _send_again()
        else:
            hook(what)

    before, hook = signal.signal(signal.SIGINT, interrupt), sys.unraisablehook
    sys.unraisablehook = unraisable
    _at_exit(_ignore_ctrl_c)
    try:
        return command()
    except BaseException as error:
        if not interrupted.is_set() and not isinstance(error, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, _exit)  # the cleanup is done, so another Ctrl-C may end the process at once
        return _report()
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)
        sys.unraisablehook = hook
        _at_exit(_exit_at_next_ctrl_c)


def _send_again() -> None:
    """Send the signal again after a moment, since an exception would do harm here, or be dropped.

    Python drops exceptions in fork handlers, finalizers and callbacks of weak references.
    """

    def send() -> None:
        time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    # Not threading.Thread: the signal may have come while a lock of `threading` is held.
    _thread.start_new_thread(send, ())


def _has_default_handler() -> bool:
    """Tell whether SIGINT has Python's default handler."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _report() -> int:
    print(SENTENCE, file=sys.stderr, flush=True)
    return ExitCode.INTERRUPTED


def _at_exit(step: Callable[[], None]) -> None:
    """Register an exit handler anew. Handlers run in reverse order of registration, with Ray's own in between."""
    atexit.unregister(step)
    atexit.register(step)


def _exit_at_next_ctrl_c() -> None:
    """Let Ctrl-C end the process at once during shutdown, where an exception would only print a traceback."""
    if _has_default_handler():
        signal.signal(signal.SIGINT, _report_and_exit)


def _ignore_ctrl_c() -> None:
    """Ignore Ctrl-C in the last step of shutdown, where the system's default would kill the process silently."""
    if signal.getsignal(signal.SIGINT) in (_exit, _report_and_exit):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _report_and_exit(signum: int, frame: FrameType | None) -> None:
    _report()
    os._exit(ExitCode.INTERRUPTED)


def _exit(signum: int, frame: FrameType | None) -> None:
    os._exit(ExitCode.INTERRUPTED)

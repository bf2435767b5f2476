"""Ctrl-C at any moment of a command: one sentence on the terminal, and exit status 130."""

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
"""128 + SIGINT, as shells have it."""
SENTENCE = "gmd-ray: stopped; the same command takes up where this one left off"

_AT_LOCKS = ("_acquireLock", "_releaseLock", "acquire", "release")
"""Functions of Python's own, as in logging, that an exception would leave with a lock that nobody gives back."""


def interruptible(command: Callable[[], int]) -> int:
    """What `command` returns; 130 and the sentence where Ctrl-C cut it short.

    Whatever exception comes of it: an import that is cut short ends as an ImportError, a database driver has an error
    of its own. Another Ctrl-C cuts short what tidies up after the first. Where SIGINT is ignored or taken by somebody
    else, that stays so.
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
        signal.signal(signal.SIGINT, _end)  # from here on there is nothing left to tidy up
        return _told()
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)
        sys.unraisablehook = hook
        _at_exit(_end_at_next)


def _again() -> None:
    """Send the signal once more, shortly: here an exception does harm, or goes nowhere.

    Python drops exceptions in what runs at a fork, in finalizers and in callbacks of weak references.
    """

    def send() -> None:
        time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    _thread.start_new_thread(send, ())  # a signal may come while a lock of `threading` is held


def _is_free() -> bool:
    """Whether SIGINT does what Python makes of it."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _told() -> int:
    print(SENTENCE, file=sys.stderr, flush=True)
    return STATUS


def _at_exit(step: Callable[[], None]) -> None:
    """Once, and in its turn: what is registered last comes first, and Ray's own steps lie in between."""
    atexit.unregister(step)
    atexit.register(step)


def _end_at_next() -> None:
    """While the interpreter shuts down, an exception would be a traceback that changes nothing."""
    if _is_free():
        signal.signal(signal.SIGINT, _end_told)


def _hear_no_more() -> None:
    """The last step: all is done, and Python would leave the process to the system's own handling, without a word."""
    if signal.getsignal(signal.SIGINT) in (_end, _end_told):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_told(signum: int, frame: FrameType | None) -> None:
    _told()
    os._exit(STATUS)


def _end(signum: int, frame: FrameType | None) -> None:
    os._exit(STATUS)

"""What a person reads of a command, as output, errors and log: no secrets, no control characters.

Names of files and messages of libraries come from others: they forge no line, move no cursor and tell no password.
"""

from __future__ import annotations

import argparse
import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import Any, NoReturn

from gmd_ray.config.secrets import redact
from gmd_ray.text import printable


def clean(text: object) -> str:
    """One line for a terminal."""
    return printable(redact(str(text)))


def clean_lines(text: object) -> str:
    """Several lines, whose breaks are meant."""
    return printable(redact(str(text)), keep="\n\t")


def say(line: object) -> None:
    """Print one line."""
    print(clean(line))


def show(text: object) -> None:
    """Print a table or another text of several lines; names in it are `printable` already."""
    print(clean_lines(text))


def complain(line: object) -> None:
    """Print one line on standard error."""
    print(f"gmd-ray: {clean(line)}", file=sys.stderr)


def start_log() -> None:
    """Log to standard error: warnings of libraries, and what this package tells; clean uncaught exceptions too."""
    logging.setLogRecordFactory(CleanRecord)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True
    )
    logging.getLogger("gmd_ray").setLevel(logging.INFO)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


class CleanRecord(logging.LogRecord):
    """A log record that any handler, ours or a library's, writes clean."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[1] is not None:
            self.exc_text = _told(self.exc_info[1])  # a formatter takes it as it is
        if self.stack_info:
            self.stack_info = _continued(self.stack_info)

    def getMessage(self) -> str:  # noqa: N802 -- logging's own name
        text = super().getMessage()
        return clean(text) if self.name.partition(".")[0] == "gmd_ray" else _continued(text)


class Parser(argparse.ArgumentParser):
    """Its errors repeat arguments, which may hold anything."""

    def error(self, message: str) -> NoReturn:
        super().error(clean(message))


def _continued(text: str) -> str:
    """Several lines of which all but the first are set in, so that none looks like another's."""
    return clean_lines(text).replace("\n", "\n  ")


def _told(error: BaseException) -> str:
    return _continued("".join(traceback.format_exception(error)).rstrip("\n"))


def _uncaught(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        sys.__excepthook__(kind, error, where)
        return
    print(_told(error), file=sys.stderr)


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        print(_told(args.exc_value), file=sys.stderr)

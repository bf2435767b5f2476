"""Output, errors and log of a command, free of secrets and control characters.

File names and messages of libraries are untrusted: they must not forge lines, move the cursor or reveal passwords.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import Any, NoReturn

from gmd_ray.config.secrets import redact
from gmd_ray.text import printable


def clean(text: object) -> str:
    """Make one line of text safe for a terminal."""
    return printable(redact(str(text)))


def clean_lines(text: object) -> str:
    """Make text of several lines safe for a terminal; line breaks and tabs are kept."""
    return printable(redact(str(text)), keep="\n\t")


def say(line: object) -> None:
    """Print one line."""
    print(clean(line))


def show(text: object) -> None:
    """Print a table or another text of several lines, in which names have been made `printable`."""
    print(clean_lines(text))


def show_json(document: Any, indent: int | None = 2) -> None:
    """Print a JSON document for programs, free of secrets; with `indent=None` on one line."""
    print(redact(json.dumps(document, indent=indent, default=str)), flush=True)


def complain(line: object) -> None:
    """Print one line on standard error."""
    print(f"gmd-ray: {clean(line)}", file=sys.stderr)


def start_log() -> None:
    """Log the messages of this package and the warnings of libraries to standard error.

    Uncaught exceptions are made safe for the terminal too.
    """
    logging.setLogRecordFactory(CleanRecord)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True
    )
    logging.getLogger("gmd_ray").setLevel(logging.INFO)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


class CleanRecord(logging.LogRecord):
    """A log record whose text is safe for a terminal in any handler, ours or a library's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[1] is not None:
            self.exc_text = _traceback(self.exc_info[1])  # formatters use this text unchanged
        if self.stack_info:
            self.stack_info = _indented(self.stack_info)

    def getMessage(self) -> str:  # noqa: N802 -- logging's own name
        text = super().getMessage()
        return clean(text) if self.name.partition(".")[0] == "gmd_ray" else _indented(text)


class Parser(argparse.ArgumentParser):
    """An argument parser whose error messages, which repeat arguments, are safe for a terminal."""

    def error(self, message: str) -> NoReturn:
        super().error(clean(message))


def _indented(text: str) -> str:
    """Indent all lines but the first, so that none can pass for a record of its own."""
    return clean_lines(text).replace("\n", "\n  ")


def _traceback(error: BaseException) -> str:
    return _indented("".join(traceback.format_exception(error)).rstrip("\n"))


def _uncaught(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        sys.__excepthook__(kind, error, where)
        return
    print(_traceback(error), file=sys.stderr)


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        print(_traceback(args.exc_value), file=sys.stderr)

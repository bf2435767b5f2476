"""Text from outside (file names, messages of libraries), made safe to print; lists of names cut short."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that are escaped: control, format (bidirectional overrides among them), surrogate, separators."""
_JOINERS = "\u200c\u200d"
"""Format characters that stay: names in Persian and Hindi and emoji need them, and they move nothing on a terminal."""


def printable(text: str, keep: str = "") -> str:
    """Replace every control character by its escape: `\\x1b`, `\\n`, `\\u202e`.

    A file name may hold line breaks and terminal sequences, which would forge lines of a log or clear a screen.

    Args:
        keep: control characters that stay, such as line breaks in a message of several lines.
    """
    if text.isprintable():
        return text
    keep += _JOINERS
    return "".join(
        c if c in keep or unicodedata.category(c) not in _UNSAFE else c.encode("unicode_escape").decode() for c in text
    )


def one_line(error: BaseException, limit: int = 500) -> str:
    """Put the message of an exception on one printable line of at most `limit` characters.

    It is the name of the exception's class where there is no message.
    """
    try:
        text = printable(" ".join(str(error).split()))
    except Exception:  # noqa: BLE001 -- the `__str__` of a foreign class may raise anything
        text = ""
    text = text or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def some(names: Sequence[str], shown: int = 3) -> str:
    """Join the first few names by commas; `, ...` follows where there are more."""
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")

"""Text that others gave (file names, messages of libraries), made fit for a terminal."""

from __future__ import annotations

import unicodedata

_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories: control, format (bidirectional overrides among them), surrogate, line and paragraph separator."""
_JOINERS = "\u200c\u200d"
"""Part of names in Persian, Hindi and of emoji; they move nothing on a terminal."""


def printable(text: str, keep: str = "") -> str:
    """`text` with every control character as its escape: `\\x1b`, `\\n`, `\\u202e`.

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
    """The message of an exception on one line, never empty, and fit for a terminal and a Parquet file."""
    try:
        text = printable(" ".join(str(error).split()))
    except Exception:  # noqa: BLE001 -- of an exception class of somebody else
        text = ""
    text = text or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."

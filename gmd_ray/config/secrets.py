"""Passwords in URLs, which are for servers and not for logs, reports and run records."""

from __future__ import annotations

import re

# Up to the last @ before a slash: a password may hold one. `s3://bucket/k@v` has none.
_USER_INFO = re.compile(r"(?<=://)[^/\s\"'<>]+@")


def redact(text: str) -> str:
    """`text` with `***` for the user names and passwords of URLs in it."""
    return _USER_INFO.sub("***@", text)


def without_credentials(url: str) -> str:
    """`url` for whoever brings credentials of their own."""
    return _USER_INFO.sub("", url)

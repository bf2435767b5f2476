"""Texts without the places of a server: a report is sent to people whom its folders do not concern."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_PLACE = re.compile(r"(?<![\w.:/~…*])(?:[a-z][a-z0-9+.-]*:/)?(?:~|file:)?/(?:[^/\s\"'<>,;()=]+/)+(?=[^\s/]|\b|$)")
"""The folders of an absolute path or a URL, up to its last name."""
_WEB = re.compile(r"https?://")


def short_place(place: str) -> str:
    """Shorten a path or a URL to its last name: `/data/run 7/lq/` becomes `…/lq`, and `runs/demo` becomes `demo`."""
    return "…/" + last_name(place) if "/" in place.rstrip("/") else place


def last_name(place: str) -> str:
    """The last name of a path or a URL, without the query of a URL."""
    return re.sub(r"[?#].*", "", place).rstrip("/").rsplit("/", 1)[-1] if "://" in place else place.rstrip("/").rsplit(
        "/", 1
    )[-1]


def without_places(value: Any) -> Any:
    """Shorten every absolute path and URL of a document, or of a sentence; keys stay.

    Args:
        value: text, a number, None, or lists and mappings of them.
    """
    if isinstance(value, dict):
        return {key: without_places(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_places(part) for part in value]
    if not isinstance(value, str):
        return value
    if value.startswith(("/", "~/")) or re.match(r"[a-z][a-z0-9+.-]*://\S+$", value):
        return short_place(value)
    return _PLACE.sub("…/", value)


def hide(page: str, places: Iterable[str]) -> str:
    """Shorten what is left of known places in a page, whatever characters their names have."""
    for place in sorted({place.rstrip("/") for place in places}, key=len, reverse=True):
        if place.startswith(("/", "~")) and place.count("/") > 1 or ("://" in place and not _WEB.match(place)):
            page = page.replace(place, short_place(place))
    return page

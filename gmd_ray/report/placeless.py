"""Texts without the places of a server: a report is sent to people whom its folders do not concern."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from markupsafe import escape

_PLACE = re.compile(r"(?<![\w.:/~…*])(?:[a-z][a-z0-9+.-]*:/)?(?:~|file:)?/(?:[^/\s\"'<>,;()=]+/)+(?=[^\s/]|\b|$)")
"""The folders of an absolute path or a URL, up to its last name."""
_PICTURE = re.compile(r"(;base64,[A-Za-z0-9+/=]+)")


def short_place(place: str) -> str:
    """Shorten a path or a URL to its last name: `/data/run 7/lq/` becomes `…/lq`, and `runs/demo` becomes `demo`."""
    return "…/" + last_name(place) if "/" in place.rstrip("/") else place


def last_name(place: str) -> str:
    """The last name of a path or a URL, without the query of a URL."""
    if "://" in place:
        place = re.sub(r"[?#].*", "", place)
    return place.rstrip("/").rsplit("/", 1)[-1]


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
    """Shorten what is left of known places in a page, whatever characters their names have; pictures stay.

    Args:
        page: HTML.
        places: paths and URLs. Relative paths and web addresses are no places of a server.
    """
    known = {place.rstrip("/") for place in places}
    known = {p for p in known if re.match(r"[/~].*/" if "://" not in p else r"(?!https?:)", p)}
    parts = _PICTURE.split(page)
    for i in range(0, len(parts), 2):
        for place in sorted(known, key=len, reverse=True):
            parts[i] = parts[i].replace(str(escape(place)), str(escape(short_place(place))))
    return "".join(parts)

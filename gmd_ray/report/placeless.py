"""Pages without the places of a server: people send them to others whom its folders do not concern."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from markupsafe import escape

from gmd_ray.config.secrets import redact

_SCHEME = r"(?!https?:)[a-z][a-z0-9+.-]*:/"
_PLACE = re.compile(rf"(?<![\w.:/~…*<-])(?:{_SCHEME}/{{0,3}}|~)?/(?:[^/\s\"'<>&,;()=]+/)+")
"""The folders of an absolute path or of a URL that is no web address, up to the last name."""
_KEPT = re.compile(r"(;base64,[A-Za-z0-9+/=]+|<script>.*?</script>|<style>.*?</style>)", re.DOTALL)
"""Parts of a page that name no place: pictures, the program and the style sheet."""


def last_name(place: str) -> str:
    """The last name of a path, or of a URL without its query: `lq` for `/data/run 7/lq/`."""
    if "://" in place:
        place = re.sub(r"[?#].*", "", place)
    return place.rstrip("/").rsplit("/", 1)[-1]


def short_places(document: Any) -> Any:
    """Shorten every text of a document that is an absolute path or a URL as a whole: `…/lq`.

    Secrets are hidden first: a password is known by its URL, of which only the end stays.

    Args:
        document: text, a number, None, or lists and mappings of them; keys stay.
    """
    if isinstance(document, dict):
        return {key: short_places(part) for key, part in document.items()}
    if isinstance(document, (list, tuple)):
        return [short_places(part) for part in document]
    if isinstance(document, str) and re.match(r"~?/|[a-z][a-z0-9+.-]*://\S+$", document):
        return "…/" + last_name(redact(document))
    return document


def hide_places(page: str, known: Iterable[str]) -> str:
    """Shorten the places in the text of a page, and hide its secrets. Web addresses and pictures stay.

    Args:
        page: HTML.
        known: paths and URLs of the run, which may hold spaces; they are recognised to their end, and so is what lies
            beside them. Of other places the end is taken to be the first space.
    """
    places = {place.rstrip("/") for place in known if "/" in place}
    shorter = {place: "…/" + last_name(place) for place in places}
    shorter |= {place.rpartition("/")[0] + "/": "…/" for place in places}
    shorter = {place: short for place, short in shorter.items() if re.match(rf"[/~].*/|{_SCHEME}/.", place)}
    parts = _KEPT.split(redact(page))
    for i in range(0, len(parts), 2):
        for place in sorted(shorter, key=len, reverse=True):
            parts[i] = parts[i].replace(str(escape(place)), str(escape(shorter[place])))
        parts[i] = _PLACE.sub("…/", parts[i])
    return "".join(parts)

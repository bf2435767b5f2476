"""A page as its tags and words, for the tests of every page."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

import cv2
import numpy as np


class Page(HTMLParser):
    """Tags, attributes and text of a page; refuses one that is not well formed."""

    VOID = ("meta", "link", "img", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        """Attributes of the tags of a name, and of a class if one is given."""
        found = [attributes for name, attributes in self.tags if name == tag]
        return [of for of in found if not kind or kind in str(of.get("class", "")).split()]

    @property
    def galleries(self) -> dict[str, list[str]]:
        """Ids of the photos by title of the gallery."""
        found: dict[str, list[str]] = {}
        for part in self.html.split('<section class="gallery">')[1:]:
            inner = Page("<section>" + part[: part.index("</section>")] + "</section>")
            title = next((words.strip() for words in inner.words if words.strip()), "")
            found[title] = [str(of["data-id"]) for of in inner.named("button", "thumb")]
        return found


def picture(src: object) -> np.ndarray:
    """The pixels of a `data:` URI: uint8 RGB, (H, W, 3)."""
    head, _, data = str(src).partition(",")
    assert head == "data:image/webp;base64", head
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(decoded[..., ::-1])

"""The pages name an empty icon, so that no browser asks the server for one that is not there."""

from __future__ import annotations

from pathlib import Path

import gmd_ray

ICON = '<link rel="icon" href="data:,">'


def test_every_page_names_its_icon() -> None:
    templates = Path(gmd_ray.__file__).parent.rglob("*.html.j2")
    pages = {file.name: text for file in templates if "<head>" in (text := file.read_text(encoding="utf-8"))}
    assert {"base.html.j2", "door.html.j2", "rater.html.j2", "report.html.j2", "preview.html.j2"} <= set(pages)
    assert [name for name, text in pages.items() if ICON not in text.partition("</head>")[0]] == []

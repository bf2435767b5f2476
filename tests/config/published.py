"""Made-up trees of published data sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gmd_ray.images.layouts import SETS


def at_a_hundredth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every set asks for a hundredth of its images."""
    for key, published in SETS.items():
        monkeypatch.setitem(SETS, key, replace(published, count=(published.count or 0) // 100 or 1))


def fill(root: Path, names: set[str], content: Callable[[str], bytes] = lambda name: b"") -> None:
    """The sets of these names at the counts that they ask for; every file of a set is `content` of its name."""
    listed: dict[str, dict[int, list[str]]] = {}
    for name in sorted(names):
        published = SETS[name]
        stars = published.files.count("*")
        at, paths = root / published.folder, []
        # Photos that a list divides into training and test lie in one folder.
        first = 50_000 if published.listed and "/test/" in name else 0
        for i in range(first, first + (published.count or 0)):
            # A frame of ten belongs to REDS val-300.
            parts = [str(i)] if stars == 1 else [f"{i // 100:03d}", f"{i % 100:04d}"]
            path = published.files
            for part in parts:
                path = path.replace("*", part, 1)
            paths.append(path)
        for path in paths:
            (at / path).parent.mkdir(parents=True, exist_ok=True)
            (at / path).write_bytes(content(name))
        if published.listed:
            base = published.folder.removeprefix(published.listed.base).lstrip("/")
            listed.setdefault(published.listed.path, {})[published.listed.column] = [f"{base}/{path}" for path in paths]
    for file, columns in listed.items():
        # Of the training photos the run takes one side alone; the list has both.
        lines = zip(columns.get(0, columns[1]), columns[1], strict=True)
        (root / file).write_text("\n".join(" ".join(line) for line in lines))

"""A cache of its own for each test, as a process of its own would see it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray.weights import cache


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `weights` of an empty cache; the process has listed no model yet."""
    monkeypatch.setenv("GMD_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GMD_RAY_COPY_FROM", raising=False)
    monkeypatch.setattr(cache, "_listed", {})
    return tmp_path / "cache" / "weights"

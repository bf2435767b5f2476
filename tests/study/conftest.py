"""A small study of two methods on noise pictures, and the browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gmd_ray.study.create import StudyPlan, create_study
from gmd_ray.study.folder import COMPARISON, DEGRADED, Study, StudyKey, load_key
from gmd_ray.study.sources import Methods
from tests.browser import browser, open_page

__all__ = ["browser", "open_page"]

SIDE = 24
PLAN = StudyPlan(title="Test <b>study</b>", seed=5, degraded=2, repeated=2)
NAMES = ("<script>alert(1)</script>", "ours | best")


def pictures(names: tuple[str, ...], photos: int, side: int = SIDE) -> Methods:
    """Noise: each method's picture of each photo is its own."""

    def noise(name: str, photo: int) -> np.ndarray:
        rng = np.random.default_rng([photo, *name.encode()])
        return rng.integers(0, 256, (side, side, 3), np.uint8)

    return {
        name: {f"photo{i}": lambda name=name, i=i: noise(name, i) for i in range(photos)}  # type: ignore[misc]
        for name in names
    }


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Six photos, methods whose names are hostile: 6 comparisons and 4 attention checks."""
    return create_study(pictures(NAMES, 6), tmp_path / "study", PLAN)


@pytest.fixture
def key(study: Study) -> StudyKey:
    return load_key(study)


def attentive(key: StudyKey, pair: str, preferred: str) -> str:
    """The choice of a rater who sees degraded copies, and prefers one method always."""
    facts = key.pairs[pair]
    if facts.kind == DEGRADED:
        return "right" if facts.left == DEGRADED else "left"
    if preferred not in (facts.left, facts.right):
        return "tie"
    return "left" if facts.left == preferred else "right"


def comparisons(key: StudyKey) -> list[str]:
    return [pair for pair, facts in key.pairs.items() if facts.kind == COMPARISON]

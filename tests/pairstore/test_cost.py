"""The cost in the manifest of a run; `tests/planning/test_plan.py` holds its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

from gmd_ray.pairstore.totals import Totals
from tests.generation.world import World


def test_a_manifest_holds_both(finished: tuple[World, Totals]) -> None:
    cost = json.loads(Path(finished[0].store, "manifest.json").read_text())["cost"]
    assert cost["predicted"] is None
    assert cost["actual"]["images"] == finished[1].ok
    assert cost["actual"]["accelerator_hours"] > 0
    assert cost["actual"]["disk_bytes"] == sum(
        file.stat().st_size for file in Path(finished[0].store, "rows").iterdir()
    )

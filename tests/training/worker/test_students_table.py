"""The benchmark of Stage 2 and restoring, with narrow students on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.benchmarks.gpu.sections import Sections
from tests.benchmarks.gpu.students import TINY, Run, run_all


@pytest.mark.slow
def test_every_row_of_training_and_restoring_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sections = Sections(600, tmp_path)
    run = Run(TINY, sections, 1e10, tmp_path, torch.device("cpu"))
    run_all(run, 2, True, ["swinir", "ldm", "restoring"])
    said = capsys.readouterr().out
    assert not sections.failed, said
    assert not sections.skipped
    rows = json.loads((tmp_path / "results.json").read_text())
    steps = [row for row in rows if "data_wait" in row]
    assert len(steps) == 8
    assert all(row["finite"] and min(row["seconds"]) > 0 and 0 <= row["data_wait"] <= 1 for row in steps)
    assert sorted({row["scale"] for row in rows if "ratio" in row and "dtype" in row}) == [1, 2]
    exports = [row for row in rows if row["label"].endswith("export")]
    assert len(exports) == 2
    assert all(row["changed"] for row in exports)
    assert [row["gap"] for row in rows if row["label"].endswith("masks")] == [0.0]
    # Nearly every weight of a SwinIR is applied once to each LQ pixel, by a product and an addition, in three passes.
    student = next(row for row in rows if row["label"] == "SwinIR: student")
    pixels = TINY.training.batch * TINY.training.patch**2
    assert student["flops"] == pytest.approx(6 * student["parameters"] * pixels, rel=0.1)

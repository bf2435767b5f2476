"""The benchmark's table of one GPU, with a narrow model on a CPU: every case runs, and goals are held against it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.benchmarks.gpu.sections import Sections
from tests.benchmarks.gpu.table import TINY, run_table
from tests.benchmarks.teacher import injections, random_teacher, with_settings


@pytest.mark.slow
def test_every_case_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sections, known = Sections(600, tmp_path), injections(TINY.steps)
    with random_teacher(torch.device("cpu"), 16) as base:
        table = run_table(
            with_settings(base, TINY.steps, known["gmd"]), TINY, sections, 1e10, known["gmd-literal"], tmp_path
        )
    said = capsys.readouterr().out
    assert not sections.failed, said
    assert not sections.skipped
    assert len(table.goals) == 3
    assert said.count("GOAL ") == 3
    rows = json.loads((tmp_path / "results.json").read_text())
    cases = [row for row in rows if "finite" in row]
    assert len(cases) == 11
    assert all(row["finite"] and row["flops"] > 0 for row in cases)
    assert (tmp_path / "profile.txt").read_text()
    # Two ways to the same pixels, and one that rounds.
    assert table.pixels["uncompiled, 64 px, batch 1"].allclose(table.pixels["plain loop, 64 px, batch 1"], atol=1e-4)
    assert torch.equal(table.pixels["recorded, 64 px, batch 1"], table.pixels["uncompiled, 64 px, batch 1"])
    assert not torch.equal(table.pixels["fp8 products, 64 px, batch 1"], table.pixels["recorded, 64 px, batch 1"])


def test_an_error_leaves_the_other_sections_alone(capsys: pytest.CaptureFixture[str]) -> None:
    sections = Sections(100)
    with sections.section("bad") as on:
        assert on
        raise ValueError("no")
    with sections.section("long", 1e6) as on:
        assert not on
    with sections.section("good") as on:
        sections.keep("good", value=1)
    assert (sections.failed, sections.skipped) == (["bad"], ["long"])
    assert sections.rows == [{"label": "good", "value": 1}]
    assert "SKIPPED long" in capsys.readouterr().out

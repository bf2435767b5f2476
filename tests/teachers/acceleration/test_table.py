"""The benchmark's table of one GPU, with a narrow model on a CPU: every case runs, and goals are held against it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.benchmarks.gpu.sections import Sections
from tests.benchmarks.gpu.table import TINY, Table, run_table
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
    rows = json.loads((tmp_path / "results.json").read_text())
    cases = [row for row in rows if "finite" in row]
    assert len(cases) == 11
    assert said.count("GOAL ") == 3
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


def test_each_goal_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A goal is a share of the ceiling, and said to be open where no case reached it."""
    sections = Sections(100)
    with random_teacher(torch.device("cpu"), 16) as base:
        table = Table(with_settings(base, 2, injections(2)["gmd"]), TINY, sections, 1e10)
    wanted = {(batch, side): table.flops(batch, side) / 1e10 / 0.85 for batch, side in ((1, 64), (1, 96), (2, 64))}
    table.seconds = {"recorded, 64 px, batch 1": wanted[1, 64] + 1.5, "recorded, 96 px, batch 1": wanted[1, 96] / 2}
    table.missing()
    lines = [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines() if "GOAL" in line]
    assert [line.partition(" s at")[0] for line in lines] == [
        f"GOAL recorded, {side} px, batch {batch}: {seconds:.2f}" for (batch, side), seconds in wanted.items()
    ]
    assert lines[0].endswith("1.50 s too slow")
    assert lines[1].endswith(": reached")
    assert lines[2].endswith("not measured")

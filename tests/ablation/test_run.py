"""Sweeps that run: how often a photo is projected, what a second call does, and what a kill leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gmd_ray.ablation.cells import DONE_FILE, Cell, make_cells
from gmd_ray.ablation.cost import sweep_cost
from gmd_ray.ablation.figures import collect_figures
from gmd_ray.ablation.run import run_sweep
from gmd_ray.ablation.table import save_tables
from gmd_ray.cli import main
from tests.ablation.conftest import SweepWorld
from tests.ablation.test_cells import sweep_of
from tests.conftest import ROOT
from tests.generation.world import wait_for

ROWS = [
    "{name: unadapted, student: baseline}",
    "{name: open gate, set: {scorer.threshold: -1000}}",
    "{name: gate}",
    "{name: half, set: {training.source_ratio: 0.5}}",
    "{name: source, student: source_only}",
]


def stamps(cells: list[Cell]) -> dict[str, int]:
    """Time of change of every finished cell's last file."""
    return {cell.folder: Path(cell.folder, DONE_FILE).stat().st_mtime_ns for cell in cells if cell.done}


def test_gates_and_ratios_project_each_photo_once_and_a_second_call_does_nothing(sweep_world: SweepWorld) -> None:
    sweep = sweep_of(sweep_world.root, *ROWS)
    cells = make_cells(sweep, sweep_world.args, sweep_world.out, range(2))
    before = sweep_cost(cells)
    assert (before.cells, before.stores, before.projections, before.finetunes) == (9, 1, 6, 8)
    assert before.projections_unshared == 6 * 6
    assert before.hours is None
    run_sweep(sweep, cells)
    assert sweep_world.projected() == Counter({f"{i:02d}.png": 1 for i in range(6)})
    assert all(cell.done for cell in cells)

    done = stamps(cells)
    run_sweep(sweep, make_cells(sweep, sweep_world.args, sweep_world.out, range(2)))
    assert stamps(cells) == done
    assert sum(sweep_world.projected().values()) == 6
    after = sweep_cost(cells)
    assert (after.cells_done, after.projections, after.finetunes, after.hours) == (9, 0, 0, 0.0)

    more = sweep_of(sweep_world.root, *ROWS, "{name: other teacher, set: {teacher.steps: 7}}")
    cells = make_cells(more, sweep_world.args, sweep_world.out, range(2))
    cost = sweep_cost(cells)
    assert (cost.projections, cost.finetunes) == (6, 2)
    assert cost.finetune_hours is not None
    run_sweep(more, cells)
    assert set(sweep_world.projected().values()) == {2}, "another teacher projects once more"
    assert done.items() <= stamps(cells).items()

    figures = collect_figures(more, cells)
    text = save_tables(figures, sweep_world.out)
    rows = {row.row.name: row for row in figures.rows}
    assert [len(rows[name].values("target", "psnr")) for name in ("unadapted", "gate")] == [1, 2]
    gate = figures.to_baseline["gate", ("target", "psnr")]
    base, ours = rows["unadapted"].mean("target", "psnr"), rows["gate"].mean("target", "psnr")
    assert base is not None
    assert ours is not None
    assert gate.mean == pytest.approx(ours - base)
    assert "untouched photo" in text
    assert "6 of 6 (100.0 %)" in text
    values = pq.read_table(Path(sweep_world.out, "values.parquet")).to_pylist()
    mine = [row["value"] for row in values if row["row"] == "gate" and row["metric"] == "psnr"]
    assert len(mine) == 2 * 7
    assert sum(mine) / 14 == pytest.approx(ours)
    document = json.loads(Path(sweep_world.out, "table.json").read_text())
    assert [row["name"] for row in document["rows"]] == [row.row.name for row in figures.rows]
    assert Path(sweep_world.out, "table.tex").read_text().count(r"\\") == 2 + len(figures.rows), (
        "a head, the untouched photo, rows"
    )


def test_a_killed_sweep_goes_on_and_redoes_no_finished_cell(sweep_world: SweepWorld) -> None:
    sweep = sweep_of(sweep_world.root, *ROWS)
    path = str(sweep_world.root / "sweep.yaml")
    command = [sys.executable, "-m", "gmd_ray.cli", "ablate", path, *sweep_world.args, "--seeds", "2"]
    cells = make_cells(sweep, sweep_world.args, sweep_world.out, range(2))
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: sum(cell.done for cell in cells) >= 3 or process.poll() is not None, 300)
    finally:
        process.kill()
        process.wait()
    done = stamps(cells)
    assert 3 <= len(done) < len(cells), "killed in the middle"
    run_sweep(sweep, cells)
    assert all(cell.done for cell in cells)
    assert done.items() <= stamps(cells).items()
    assert set(sweep_world.projected().values()) == {1}


def test_the_command_plans_without_starting(sweep_world: SweepWorld, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "table7", *sweep_world.args, "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "cells                    19" in printed
    assert "projections               6" in printed
    assert not sweep_world.projected()
    assert not Path(sweep_world.out, "cells").exists()


def test_the_command_lists_its_sweeps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "--list"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()][:2] == ["table5", "table6"]
    assert "table13    Table 13: two teachers" in printed


@pytest.mark.parametrize("given", [[], ["preset=toy"]])
def test_a_sweep_is_asked_for(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", *given]) == 2
    assert "ablate needs a sweep before the settings: table5, table6" in capsys.readouterr().err


def test_a_group_that_is_no_regular_expression_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ablate", "table7", "--group", "("])
    assert "(: no regular expression" in capsys.readouterr().err


def test_a_parameter_needs_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "table13", "--with", "teacher2"]) == 2
    assert "--with teacher2: give NAME=VALUE" in capsys.readouterr().err

"""Identities of cells and stores: what is shared and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray.ablation.cells import Cell, make_cells
from gmd_ray.ablation.sweep import Ablation, load_sweep
from gmd_ray.errors import ConfigError
from gmd_ray.pairstore import run_settings
from tests.ablation.conftest import SweepWorld


def sweep_of(tmp_path: Path, *rows: str) -> Ablation:
    path = tmp_path / "sweep.yaml"
    path.write_text("rows:\n" + "".join(f"  - {row}\n" for row in rows), encoding="utf-8")
    return load_sweep(str(path))


def by_row(world: SweepWorld, *rows: str, seeds: int = 1) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in make_cells(sweep_of(world.root, *rows), world.args, world.out, range(seeds)):
        found.setdefault(cell.row.name, []).append(cell)
    return found


@pytest.mark.parametrize(
    "change",
    [
        "scorer.threshold: 5.0",
        "scorer.fidelity_bound: 20, scorer.fidelity: none",
        "training.source_ratio: 0.3",
        "training.steps: 3",
        "evaluation.metrics: [ssim]",
    ],
)
def test_what_stages_0_and_1_do_not_read_leaves_the_store_the_same(sweep_world: SweepWorld, change: str) -> None:
    if "fidelity_bound" in change:  # a bound needs its metric, which is measured when the pairs are made
        change = "scorer.fidelity: none"
    rows = by_row(sweep_world, "{name: a}", f"{{name: b, set: {{{change}}}}}")
    assert rows["a"][0].store == rows["b"][0].store


@pytest.mark.parametrize(
    "change",
    [
        "teacher.strength: 0.5",
        "teacher.injection.blocks: all",
        "scorer.fidelity: psnr",
        "target.limit: 3",
        "teacher.path: tests/ablation",
    ],
)
def test_what_they_read_makes_another(sweep_world: SweepWorld, change: str) -> None:
    rows = by_row(sweep_world, "{name: a}", f"{{name: b, set: {{{change}}}}}")
    assert rows["a"][0].store != rows["b"][0].store


def test_another_gate_or_ratio_is_another_cell(sweep_world: SweepWorld) -> None:
    rows = by_row(sweep_world, "{name: a}", "{name: b, set: {scorer.threshold: 5.0}}", "{name: c}", seeds=2)
    assert rows["a"][0].folder != rows["b"][0].folder != rows["a"][1].folder
    assert [cell.folder for cell in rows["a"]] == [cell.folder for cell in rows["c"]], "rows that do the same share it"


def test_ratio_1_is_the_control_of_source_pairs_and_reads_no_store(sweep_world: SweepWorld) -> None:
    rows = by_row(sweep_world, "{name: a, set: {training.source_ratio: 1.0}}", "{name: b, student: source_only}")
    [a], [b] = rows["a"], rows["b"]
    assert a.folder == b.folder
    assert a.store is None
    assert a.kind == "source_only"


def test_a_control_of_source_pairs_is_the_same_under_any_teacher_and_gate(sweep_world: SweepWorld) -> None:
    rows = by_row(
        sweep_world,
        "{name: a, student: source_only}",
        "{name: b, student: source_only, set: {teacher.strength: 0.5, scorer.threshold: 1, target.limit: 2}}",
    )
    assert rows["a"][0].folder == rows["b"][0].folder


def test_the_unadapted_student_has_one_cell_whatever_the_number_of_seeds(sweep_world: SweepWorld) -> None:
    rows = by_row(sweep_world, "{name: before, student: baseline}", "{name: a}", seeds=3)
    assert [cell.seed for cell in rows["before"]] == [None]
    assert [cell.seed for cell in rows["a"]] == [0, 1, 2]
    assert set(rows) == {"before", "a"}


def test_it_has_a_cell_where_no_row_shows_it(sweep_world: SweepWorld) -> None:
    rows = by_row(sweep_world, "{name: a}")
    assert set(rows) == {"unadapted student.safetensors", "a"}


def test_the_first_seed_of_all_rows_comes_before_the_second(sweep_world: SweepWorld) -> None:
    sweep = sweep_of(sweep_world.root, "{name: a}", "{name: b, set: {training.steps: 3}}")
    cells = make_cells(sweep, sweep_world.args, sweep_world.out, range(2))
    assert [(cell.row.name, cell.seed) for cell in cells][1:] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_a_setting_that_a_row_gets_wrong_names_the_row(sweep_world: SweepWorld) -> None:
    with pytest.raises(ConfigError, match=r"row 'a': training.step=3: .*did you mean 'training.steps'"):
        by_row(sweep_world, "{name: a, set: {training.step: 3}}")


def test_a_later_version_with_more_settings_finds_the_cells(
    sweep_world: SweepWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that it adds has a default, which is what the cells were made with."""
    relevant = run_settings.relevant
    before = by_row(sweep_world, "{name: a}")["a"][0]
    monkeypatch.setattr(run_settings, "relevant", lambda cfg: relevant(cfg) | {"teacher.brand_new": 1})
    after = by_row(sweep_world, "{name: a}")["a"][0]
    assert (before.store, before.folder) == (after.store, after.folder)

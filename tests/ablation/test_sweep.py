"""Descriptions of sweeps: those that come with the package, grids, parameters, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray.ablation.sweep import load_sweep, of_pairs, sweep_names
from gmd_ray.errors import ConfigError


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_papers_ablation_tables_are_there() -> None:
    assert {f"table{n}" for n in (5, 6, 7, 10, 11, 12, 13)} <= set(sweep_names())


@pytest.mark.parametrize("name", sweep_names())
def test_a_sweep_of_the_package_loads_with_every_parameter_given(name: str) -> None:
    known = {"table5": ["kontext"], "table12": ["student2"], "table13": ["teacher2"]}
    given = dict.fromkeys(known.get(name, []), "somewhere")
    sweep = load_sweep(name, given)
    assert sweep.rows
    assert not sweep.left_out
    assert not any("{" in text for row in sweep.rows for text in (row.name, *row.overrides))


def test_table_7_has_the_papers_ratios() -> None:
    rows = [row for row in load_sweep("table7").rows if row.student == "adapted"]
    assert [row.overrides for row in rows] == [
        (f"training.source_ratio={ratio}",) for ratio in (1.0, 0.95, 0.9, 0.6, 0.3, 0.0)
    ]


def test_a_grid_is_the_product_of_its_lists(tmp_path: Path) -> None:
    text = "rows: [{name: 'lr {training.lr}', grid: {training.lr: [1.0e-4, 2.0e-4], training.steps: [3, 5]}}]"
    rows = load_sweep(write(tmp_path, text)).rows
    assert [row.overrides for row in rows] == [
        (f"training.lr={lr}", f"training.steps={steps}") for lr in (0.0001, 0.0002) for steps in (3, 5)
    ]
    assert rows[0].name == "lr 0.0001 (training.steps=3)"


def test_values_are_text_that_the_command_line_takes(tmp_path: Path) -> None:
    text = "rows: [{name: a, set: {teacher.injection.steps: null, evaluation.metrics: [psnr], training.flip: true}}]"
    assert load_sweep(write(tmp_path, text)).rows[0].overrides == (
        "teacher.injection.steps=null",
        'evaluation.metrics=["psnr"]',
        "training.flip=true",
    )


def test_a_row_whose_parameter_is_missing_is_left_out_and_named() -> None:
    without, with_it = load_sweep("table13"), load_sweep("table13", {"teacher2": "/models/other"})
    assert "teacher 2" not in [row.name for row in without.rows]
    assert "--with teacher2=" in without.left_out["teacher 2"]
    row = next(row for row in with_it.rows if row.name == "teacher 2")
    assert row.overrides == ("teacher.path=/models/other",)


def test_a_reference_to_out_stays(tmp_path: Path) -> None:
    text = "rows: [{name: a, set: {target.path: '${out}/world'}}]"
    assert load_sweep(write(tmp_path, text)).rows[0].overrides == ("target.path=${out}/world",)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rows: []", "without rows"),
        ("rows: [{name: a}, {name: a}]", "two rows are called 'a'"),
        ("rows: [{nam: a}]", "unknown key 'nam'; did you mean 'name'"),
        ("rows: [{name: a, student: adaptd}]", "did you mean 'adapted'"),
        ("rows: [{student: adapted}]", "a row without a name"),
        ("rows: [{name: a, grid: {training.lr: 3}}]", "give a list of values"),
        ("{reference: b, rows: [{name: a}]}", "no row 'b'"),
        ("[1, 2]", "not a mapping"),
        ("{published: 7/RED, rows: [{name: a}]}", "did you mean '7/REDS'"),
        ("rows: [", "cannot be read as YAML"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        load_sweep(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_an_unknown_sweep_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'table7'"):
        load_sweep("tabel7")


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(ConfigError, match="no parameter 'teacher3'; did you mean 'teacher2'"):
        load_sweep("table13", {"teacher3": "x"})


def test_a_sweep_of_pairs_has_the_rows_that_make_some() -> None:
    sweep = of_pairs(load_sweep("table11"))
    assert [(row.name, row.student) for row in sweep.rows] == [("SDEdit", "pairs"), ("inversion", "pairs")]
    assert sweep.name == "table11-pairs"

"""The table's text: what stands beside, below and in brackets, from cells whose values are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gmd_ray.ablation.cells import DONE_FILE, STUDENT, Cell, make_cells
from gmd_ray.ablation.figures import SweepFigures, collect_figures, group_of
from gmd_ray.ablation.sweep import Ablation
from gmd_ray.ablation.table import json_table, latex_table, markdown_table
from gmd_ray.evaluation import Evaluation
from gmd_ray.evaluation.results import PICTURES, ROWS, TRUTH
from gmd_ray.evaluation.summaries.published import published_rows
from tests.ablation.conftest import SweepWorld
from tests.ablation.test_cells import sweep_of

IMAGES = [f"photo{k // 2}_{k % 2}.png" for k in range(16)]
BASE = np.linspace(30, 33, 16)


def finish(cell: Cell, values: np.ndarray, **facts: object) -> None:
    """Write a cell as `run_sweep` leaves it; a value that is not a number is left out."""
    rows = [
        {"dataset": "target", "id": image, "student": name, "metric": "psnr", "value": v, "higher_is_better": True}
        for name, given in ((STUDENT, values), ("lq", BASE - 1))
        for image, v in zip(IMAGES, given, strict=True)
        if not np.isnan(v)
    ]
    evaluation = Evaluation(
        rows=pa.Table.from_pylist(rows, schema=ROWS),
        pictures=PICTURES.empty_table(),
        students=("lq", STUDENT),
        metrics=("psnr",),
        settings="",
    )
    evaluation.save(cell.folder)
    Path(cell.folder, DONE_FILE).write_text(json.dumps(facts))


@pytest.fixture
def table(sweep_world: SweepWorld) -> SweepFigures:
    """Rows that gain 1 dB, 1.5 dB, and nothing but noise; the third seed of the last one is not finished."""
    rows = ["{name: before, student: baseline}", "{name: one}", "{name: more, set: {training.steps: 3}}"]
    sweep = sweep_of(sweep_world.root, *rows, "{name: same, set: {training.steps: 4}}")
    sweep = replace(sweep, reference="one", published="7/REDS", left_out={"other": "--with x=... (a thing)"})
    cells = make_cells(sweep, sweep_world.args, sweep_world.out, range(3))
    rng = np.random.default_rng(0)
    noise = {seed: rng.normal(0, 0.2, 16) for seed in (0, 1, 2)}
    for cell in cells:
        gain = {"before": 0.0, "one": 1.0, "more": 1.5, "same": 0.0}[cell.row.name]
        if (cell.row.name, cell.seed) == ("same", 2):
            continue
        own = rng.normal(0, 0.2, 16) if cell.row.name == "same" else noise.get(cell.seed or 0, 0) * (gain > 0)
        finish(cell, BASE + gain + own, pairs={"generated": 6, "accepted": 3, "threshold": 5.0})
    return collect_figures(sweep, cells, r"^(.+?)_\d")


def test_a_difference_is_the_mean_over_images_and_seeds_and_named_by_its_interval(table: SweepFigures) -> None:
    one, same = (table.to_baseline[name, ("target", "psnr")] for name in ("one", "same"))
    assert one.mean == pytest.approx(1.0, abs=0.1)
    assert one.low is not None
    assert 0.5 < one.low < one.mean
    assert (one.word, same.word) == ("better", "no difference seen")
    assert ("before", ("target", "psnr")) not in table.to_baseline


def test_rows_are_compared_with_the_reference_seed_by_seed(table: SweepFigures) -> None:
    """The same noise in each seed of both rows: their difference has none, and so no width."""
    more = table.to_reference["more", ("target", "psnr")]
    assert more.low is not None
    assert (more.mean, more.low, more.high) == pytest.approx((0.5, 0.5, 0.5))
    assert table.to_reference["before", ("target", "psnr")].word == "worse"
    assert ("one", ("target", "psnr")) not in table.to_reference


@pytest.mark.parametrize("lost", ["one", "more"])
def test_a_seed_without_values_is_left_out_of_both_rows(sweep_world: SweepWorld, lost: str) -> None:
    """Seeds add 1, 10 and 100 to both rows: any other pairing than seed with seed shows at once."""
    sweep = sweep_of(sweep_world.root, "{name: one}", "{name: more, set: {training.steps: 3}}")
    cells = make_cells(replace(sweep, reference="one"), sweep_world.args, sweep_world.out, range(3))
    for cell in cells:
        if cell.row in sweep.rows:
            assert cell.seed is not None
            gain = 10.0**cell.seed + (0.5 if cell.row.name == "more" else 0)
            finish(cell, BASE + (np.nan if (cell.row.name, cell.seed) == (lost, 0) else gain))
    table = collect_figures(replace(sweep, reference="one"), cells)
    found = table.to_reference["more", ("target", "psnr")]
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    rows = {row["name"]: row for row in json_table(table)["rows"]}
    assert rows[lost]["seeds"] == [0, 1, 2]
    assert rows[lost]["means_by_seed"]["target/psnr"] == [
        None,
        *(pytest.approx(BASE.mean() + gain) for gain in ((10, 100) if lost == "one" else (10.5, 100.5))),
    ]
    assert rows[lost]["means"]["target/psnr"] == pytest.approx(BASE.mean() + (55 if lost == "one" else 55.5))


def test_p_values_are_corrected_over_the_table(table: SweepFigures) -> None:
    found = table.to_baseline["one", ("target", "psnr")]
    assert found.p is not None
    assert found.adjusted_p is not None
    assert found.adjusted_p >= found.p
    assert found.adjusted_p == pytest.approx(min(1.0, 3 * found.p))


def test_crops_of_a_photo_count_once(table: SweepFigures) -> None:
    assert group_of("photo3_1.png", r"^(.+?)_\d") == "photo3"
    assert group_of("other.png", r"^(.+?)_\d") == "other.png"
    single = replace(table, group=None).to_baseline["same", ("target", "psnr")]
    grouped = table.to_baseline["same", ("target", "psnr")]
    assert single.mean == grouped.mean
    assert (single.low, single.high) != (grouped.low, grouped.high)


def test_markdown_says_what_is_missing_and_marks_what_is_published(table: SweepFigures) -> None:
    text = markdown_table(table)
    assert "| untouched photo | 30.50 |" in text
    assert "| before | 31.50 |" in text
    assert "| one | 32.5" in text
    assert "Each row minus `one`, seed by seed:" in text
    assert "Not finished: same (2 of 3)." in text
    assert "Left out: other, which needs --with x=... (a thing)." in text
    assert "| ratio 0.9 (Ours) (published) |" in text
    assert "measured by its authors" in text
    assert "3 of 6 (50.0 %)" in text
    same = next(line for line in text.splitlines() if line.startswith("| same |"))
    assert same.count(", no difference seen)") == 1
    one = next(line for line in text.splitlines() if line.startswith("| one |"))
    assert one.count("], better)") == 1
    assert "0.183" in text
    assert "0.1830" not in text, "with the digits of the paper"


def test_a_row_of_too_few_images_says_so(table: SweepFigures) -> None:
    text = markdown_table(replace(table, group=r"(photo)"))
    one = next(line for line in text.splitlines() if line.startswith("| one |"))
    assert ", too few images)" in one


def test_latex_and_json_have_every_row(table: SweepFigures) -> None:
    tex, document = latex_table(table), json_table(table)
    ours, reference, published = tex.split(r"\end{tabular}")[:3]
    assert ours.count(r" \\") == 1 + 1 + 4, "heads, the untouched photo, and each row"
    assert "% Each row minus one, seed by seed:" in reference
    assert reference.count(r" \\") == 1 + 3, "heads, and each row but the reference"
    assert "more & +0.50 [+0.50, +0.50] better" in reference
    paper = published_rows("7/REDS")
    assert published.count(r" \\") == 1 + len(paper)
    assert f"{paper[0].method} (published) & {' & '.join(paper[0].printed.values())}" in published
    assert "measured by its authors" in published
    rows_of_tex = [line for line in tex.splitlines() if not line.startswith("%")]
    assert "%" not in "".join(rows_of_tex).replace(r"\%", "")
    rows = {row["name"]: row for row in document["rows"]}
    assert rows["same"]["seeds"] == [0, 1]
    assert rows["one"]["minus_unadapted"]["target/psnr"]["word"] == "better"
    assert len(rows["more"]["means_by_seed"]["target/psnr"]) == 3
    assert document["published"]["rows"][0]["method"] == "ratio 1.0"


def test_no_name_is_a_command_of_latex(table: SweepFigures) -> None:
    name = r"{a} $b$ ^c ~d \\e <f> 5% g_h"
    row = replace(table.rows[1], row=replace(table.rows[1].row, name=name))
    tex = latex_table(replace(table, rows=(row,)))
    (line,) = [line for line in tex.splitlines() if "g\\_h" in line]
    assert line.startswith(
        r"\{a\} \$b\$ \textasciicircum{}c \textasciitilde{}d \textbackslash{}\textbackslash{}e $<$f$>$ 5\% g\_h &"
    )


def test_a_no_reference_metric_is_judged_by_the_truth_and_every_metric_is_named(sweep_world: SweepWorld) -> None:
    """NIQE says 6.8 of the noisy photo and 11.2 of its truth: a student that raises it from 7 to 10 comes nearer."""
    sweep = sweep_of(sweep_world.root, "{name: before, student: baseline}", "{name: one}")
    cells = make_cells(sweep, sweep_world.args, sweep_world.out, range(3))
    spread = np.linspace(0, 0.4, 16)
    for cell in cells:
        ours = 7.0 if cell.row.name == "before" else 10.0 + 0.1 * (cell.seed or 0)
        rows = [
            {"dataset": "target", "id": image, "student": name, "metric": "niqe", "value": value + more}
            | {"higher_is_better": False}
            for name, value in ((STUDENT, ours), ("lq", 6.8), (TRUTH, 11.2))
            for image, more in zip(IMAGES, spread, strict=True)
        ]
        Evaluation(
            rows=pa.Table.from_pylist(rows, schema=ROWS),
            pictures=PICTURES.empty_table(),
            students=("lq", STUDENT),
            metrics=("niqe",),
            settings="",
            variants={"niqe": "Y, pyiqa's niqe"},
        ).save(cell.folder)
        Path(cell.folder, DONE_FILE).write_text("{}")
    table = collect_figures(sweep, cells)
    found = table.to_baseline["one", ("target", "niqe")]
    # Distances 4.2 before, and 1.2, 1.1 and 1.0 after.
    assert found.mean == pytest.approx(1.1 - 4.2)
    assert (found.word, found.phrase, found.to_truth) == ("better", "closer to the truth", True)
    text, tex = markdown_table(table), latex_table(table)
    assert "| untouched photo | 7.000 |" in text
    assert "| ground truth | 11.40 |" in text
    assert "| one | 10.30 (distance -3.10" in text
    for notes in (text, tex):
        assert "NIQE: Y, pyiqa's niqe." in notes
        assert "judged by its distance to the ground truth's value" in notes
    assert json_table(table)["ground_truth"] == {"target/niqe": pytest.approx(11.4)}


def test_a_sweep_without_a_finished_cell_has_a_table_too(sweep_world: SweepWorld) -> None:
    sweep: Ablation = sweep_of(sweep_world.root, "{name: one}")
    cells = make_cells(sweep, sweep_world.args, sweep_world.out, range(2))
    assert "Not finished: one (0 of 2)." in markdown_table(collect_figures(sweep, cells))

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gmd_ray.errors import DataError
from gmd_ray.evaluation import Evaluation, load_evaluation
from gmd_ray.evaluation.results import NO_TRUTH, PICTURES, ROWS, UNAVAILABLE, InferenceCost
from gmd_ray.evaluation.summaries import markdown, save_tables
from gmd_ray.evaluation.table import number, source_loss


def evaluation(
    values: dict[tuple[str, str], list[float | None]],
    *,
    dataset: str = "target",
    higher: bool = True,
    extra: list[dict[str, object]] | None = None,
    metrics: tuple[str, ...] = ("psnr",),
) -> Evaluation:
    """Build an evaluation from the values of image 0, 1, ... by (student, metric); None is a failure."""
    rows = [
        {
            "dataset": dataset,
            "id": f"{i}.png",
            "student": student,
            "metric": metric,
            "value": value,
            "error": "no luck" if value is None else None,
            "higher_is_better": higher,
        }
        for (student, metric), line in values.items()
        for i, value in enumerate(line)
    ]
    students = tuple(dict.fromkeys(student for student, _ in values))
    table = pa.Table.from_pylist(rows + (extra or []), schema=ROWS)
    return Evaluation(table, PICTURES.empty_table(), students, metrics, "crop_border=0")


def test_difference_is_paired_by_image_with_an_interval_of_its_mean() -> None:
    rng = np.random.default_rng(0)
    baseline, gains = rng.normal(24, 5, 50), rng.normal(0.4, 0.2, 50)
    found = evaluation({("baseline", "psnr"): list(baseline), ("adapted", "psnr"): list(baseline + gains)})
    difference = found.difference("adapted", "target", "psnr")
    assert difference is not None
    assert difference.low is not None
    assert difference.high is not None
    assert difference.mean == pytest.approx(gains.mean(), abs=1e-12)
    # Far below the spread of the images themselves: the pairing is what makes a small gain visible.
    error = gains.std(ddof=1) / math.sqrt(50)
    assert difference.high - difference.low == pytest.approx(2 * 2.01 * error, rel=0.05)
    assert (difference.n, difference.only_reference, difference.word) == (50, 0, "better")


def test_difference_uses_the_images_that_both_have_and_counts_the_others() -> None:
    found = evaluation({("baseline", "psnr"): [20, 21, 22, None], ("adapted", "psnr"): [21, None, 24, 30]})
    difference = found.difference("adapted", "target", "psnr")
    assert difference is not None
    assert (difference.mean, difference.n, difference.only_reference) == (1.5, 2, 1)
    assert found.mean("adapted", "target", "psnr") == 25.0
    assert found.failures("target") == [("adapted", "psnr", "no luck", 1), ("baseline", "psnr", "no luck", 1)]


def test_a_single_image_has_no_interval_and_a_stranger_no_difference() -> None:
    found = evaluation({("baseline", "psnr"): [20], ("adapted", "psnr"): [21]})
    difference = found.difference("adapted", "target", "psnr")
    assert difference is not None
    assert (difference.low, difference.high, difference.p, difference.word) == (None, None, None, "too few images")
    assert found.difference("adapted", "target", "psnr", against="median") is None
    assert found.mean("adapted", "source", "psnr") is None


def test_table_shows_means_differences_directions_and_what_is_unavailable() -> None:
    unavailable = {"dataset": "target", "id": "0.png", "student": "adapted", "metric": "lpips"}
    extra = [{**unavailable, "error": f"{UNAVAILABLE}no weights at hand"}]
    values = {("baseline", "niqe"): [6.0] * 8, ("adapted", "niqe"): [5.0] * 4 + [4.5] * 4}
    found = evaluation(values, higher=False, extra=extra, metrics=("niqe", "lpips"))
    lines = markdown(found).splitlines()
    assert "| method | niqe ↓ |" in lines
    assert "| baseline | 6.000 |" in lines
    assert "| adapted | 4.750 (-1.250 [-1.438, -1.062] better) |" in lines
    assert "- lpips: unavailable: no weights at hand" in lines
    assert found.unavailable == {"lpips": "no weights at hand"}


@pytest.mark.parametrize(("value", "text"), [(24.307, "24.31"), (0.72138, "0.7214"), (5.7, "5.700"), (-12.0, "-12.00")])
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_table_shows_what_ground_truth_is_missing_for_and_what_students_cost() -> None:
    row = {"dataset": "target", "id": "0.png", "metric": "psnr", "error": NO_TRUTH, "higher_is_better": True}
    extra: list[dict[str, object]] = [{**row, "student": student} for student in ("baseline", "adapted")]
    values = {("baseline", "niqe"): [6.0], ("adapted", "niqe"): [5.0]}
    found = evaluation(values, higher=False, extra=extra, metrics=("psnr", "niqe"))
    costs = {
        "baseline": InferenceCost(57_281, 0.0125, "CPU (1 thread)"),
        "adapted": InferenceCost(None, 12.5, "CPU (1 thread)"),
    }
    found = replace(found, costs={"target": costs})
    lines = markdown(found).splitlines()
    assert "| method | psnr ↑ | niqe ↓ | parameters | s/image |" in lines
    assert "| baseline | – | 6.000 | 57,281 | 0.0125 |" in lines
    assert "| adapted | – | 5.000 (-1.000) | – | 12.50 |" in lines
    assert "- psnr: unavailable: needs ground truth, which this test set lacks" in lines
    note = "- s/image: median over the test set, one image at a time, without the first one of each worker, on "
    assert f"{note}CPU (1 thread)" in lines
    assert found.failures("target") == []
    assert found.unavailable == {}
    assert found.why_missing("target", "psnr") == NO_TRUTH
    assert found.why_missing("source", "psnr") == "it was not measured"


def test_a_fine_tune_that_harms_the_source_by_itself_is_named_with_its_remedies() -> None:
    baseline = {("baseline", "psnr"): [30.0, 32.0] * 4}
    harmed = evaluation(baseline | {("source_only", "psnr"): [29.5, 31.7] * 4}, dataset="source")
    note = source_loss(harmed)
    assert note.startswith("source_only loses 0.40 dB PSNR on the source itself (95 % interval 0.3")
    assert all(key in note for key in ("training.lr", "training.loss=l2", "training.batch_size", "training.ema"))
    assert "\n" not in note
    assert f"- {note}" in markdown(harmed).splitlines()


@pytest.mark.parametrize(
    ("dataset", "student", "values"),
    [
        ("source", "source_only", [30.1, 32.1] * 4),  # it gains
        ("source", "source_only", [29.0, 32.8] * 4),  # -0.1 on average, within the interval
        ("source", "adapted", [29.5, 31.7] * 4),  # the price of the photos, not of the fine-tune
        ("target", "source_only", [29.5, 31.7] * 4),
        ("source", "source_only", [29.5, 31.7] + [None] * 6),  # two images alone have no interval
    ],
)
def test_other_losses_are_not_put_down_to_the_fine_tune(dataset: str, student: str, values: list[float | None]) -> None:
    found = evaluation({("baseline", "psnr"): [30.0, 32.0] * 4, (student, "psnr"): values}, dataset=dataset)
    assert source_loss(found) == ""
    assert "loses" not in markdown(found)


def test_save_and_load_give_the_same_evaluation(tmp_path: Path) -> None:
    found = evaluation({("lq", "psnr"): [19], ("baseline", "psnr"): [20], ("adapted", "psnr"): [21]})
    costs = {"target": {"baseline": InferenceCost(3, 0.5, "CPU (1 thread)")}}
    found = replace(found, contents={"target": "ab12"}, costs=costs)
    found.save(str(tmp_path))
    save_tables(found, str(tmp_path))
    again = load_evaluation(str(tmp_path))
    assert again.rows.equals(found.rows)
    assert (again.students, again.metrics, again.settings) == (found.students, found.metrics, found.settings)
    assert (again.contents, again.costs) == (found.contents, found.costs)
    assert again.test_set("target") == found.test_set("target")
    assert (tmp_path / "evaluation" / "table.md").read_text() == markdown(found)
    with pytest.raises(DataError, match="evaluate this run first"):
        load_evaluation(str(tmp_path / "elsewhere"))


def test_test_set_digest_changes_with_images_and_settings() -> None:
    one = evaluation({("baseline", "psnr"): [20, 21]})
    other = evaluation({("baseline", "psnr"): [1, None]})
    fewer = evaluation({("baseline", "psnr"): [20]})
    cropped = replace(one, settings="crop_border=4")
    others = replace(one, contents={"target": "the same names, other pictures"})
    assert one.test_set("target") == other.test_set("target")
    assert len({found.test_set("target") for found in (one, fewer, cropped, others)}) == 4

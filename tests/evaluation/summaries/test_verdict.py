"""The two sentences at the head of the report, against evaluations whose outcome is known."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest

from gmd_ray.evaluation import Evaluation
from gmd_ray.evaluation.results import PICTURES, ROWS
from gmd_ray.evaluation.summaries.gains import find_gains
from gmd_ray.evaluation.summaries.verdict import find_verdict

Values = dict[str, list[float]]


def evaluation(higher: bool = True, metric: str = "psnr", **sets: Values) -> Evaluation:
    """Values by test set and student; image i is `i.png`."""
    rows = [
        {"dataset": dataset, "id": f"{i}.png", "student": student, "metric": metric, "value": value,
         "higher_is_better": higher}
        for dataset, students in sets.items()
        for student, values in students.items()
        for i, value in enumerate(values)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=ROWS)
    names = tuple(name for name in ("lq", "baseline", "adapted") if name in table["student"].to_pylist())
    return Evaluation(table, PICTURES.empty_table(), names, (metric,), "")


def pair(gain: float, spread: float = 0.1, n: int = 20, start: float = 30.0) -> Values:
    """n images whose mean gain is exactly `gain`."""
    noise = np.random.default_rng(1).normal(size=n) * spread
    noise -= noise.mean()
    return {"baseline": [start] * n, "adapted": (start + gain + noise).tolist()}


def sentences(text: str) -> int:
    return len(re.findall(r"[.](?: |$)", text))


@pytest.mark.parametrize(
    ("gain", "style", "words"),
    [
        (
            0.8,
            "better",
            "photos better: 20 of 20 target test photos improve, and the average gain is 0.80 dB PSNR.",
        ),
        (-0.8, "worse", "made the restored photos worse: 0 of 20 target test photos improve, and the average loss is"),
        (0.001, "unclear", "made no difference that can be seen"),
    ],
)
def test_better_worse_and_no_difference(gain: float, style: str, words: str) -> None:
    found = find_verdict(evaluation(target=pair(gain)))
    assert found.style == style
    assert words in found.first
    assert sentences(found.first) == sentences(found.second) == 1
    difference = evaluation(target=pair(gain)).difference("adapted", "target", "psnr")
    assert difference is not None
    assert difference.low is not None
    assert difference.high is not None
    ends = f"{difference.low:+.2f} and {difference.high:+.2f} dB".replace("-", "−")
    sure = f"With 95\u00a0% confidence the average change on photos like these lies between {ends}"
    assert found.second == f"{sure}, if they are independent of each other."


def test_lower_may_be_better() -> None:
    found = find_verdict(evaluation(higher=False, metric="lpips", target=pair(-1.5)))
    assert found.style == "better"
    assert found.first.endswith(
        "20 of 20 target test photos improve, and the average gain is 1.50 LPIPS (lower is better)."
    )
    assert "between +1.4" in found.second, "a gain is positive, whatever the direction"


@pytest.mark.parametrize(
    ("gain", "words"), [(-1.5, "fell, which is better (20 of 20"), (1.5, "rose, which is worse"), (0.0, "did not cha")]
)
def test_a_score_without_ground_truth_judges_nobody(gain: float, words: str) -> None:
    found = find_verdict(evaluation(higher=False, metric="niqe", target=pair(gain)))
    assert found.style == "unclear"
    assert (
        "cannot say whether the photos became better: the score NIQE (lower is better), which may take" in found.first
    )
    assert words in found.first
    assert sentences(found.first) == 1
    values = pair(gain) | {"hq": [25.0] * 20}
    assert "Without ground truth" not in find_verdict(evaluation(higher=False, metric="niqe", target=values)).first


def test_untouched_photos_that_beat_both_students_are_told() -> None:
    good = {"lq": [40.0] * 20}
    found = find_verdict(evaluation(target=pair(0.8) | good))
    assert "the untouched photos are better than both students (40.00 dB against 30.80)" in found.second
    assert found.style == "unclear"
    assert find_verdict(evaluation(target=pair(-0.8) | good)).style == "worse", "harm is harm all the same"
    between = {"lq": [30.4] * 20}
    assert "untouched" not in find_verdict(evaluation(target=pair(0.8) | between)).second


def test_the_source_domain_is_told() -> None:
    found = find_verdict(evaluation(target=pair(0.8), source=pair(-0.5, n=12)))
    assert "photos of the source domain get worse (−0.50 dB PSNR)" in found.second
    same = find_verdict(evaluation(target=pair(0.8), source=pair(0.0, n=12)))
    assert "on the source domain no difference is seen" in same.second


def test_one_photo_is_too_few() -> None:
    found = find_verdict(evaluation(target={"baseline": [30.0], "adapted": [31.0]}))
    assert found.style == "unclear"
    assert found.first.startswith("Too few test photos to judge the adaptation: the one target test photo improves")


def test_nothing_to_compare() -> None:
    found = find_verdict(evaluation(target={"baseline": [30.0, 31.0]}))
    assert "no adapted student" in found.first
    assert found.style == "unclear"


def test_gains_rank_by_direction_and_by_the_truth() -> None:
    values = {"baseline": [5.0, 5.0, 5.0], "adapted": [4.0, 6.0, 5.0]}
    up, down = (find_gains(evaluation(higher, "m", target=values), "target") for higher in (True, False))
    assert up is not None
    assert down is not None
    assert up.most_improved(5) == down.most_harmed(5) == ["1.png"]
    assert up.most_harmed(5) == down.most_improved(5) == ["0.png"]
    assert up.improved == 1
    truth = evaluation(True, "m", target=values | {"hq": [4.0, 5.0, 5.0]})
    near = find_gains(truth, "target")
    assert near is not None
    assert near.by_image == {"0.png": 1.0, "1.png": -1.0, "2.png": 0.0}


def test_typical_is_nearest_the_median_of_all_and_not_of_those_pictured() -> None:
    found = find_gains(evaluation(target={"baseline": [0.0] * 5, "adapted": [0.0, 1.0, 2.0, 3.0, 9.0]}), "target")
    assert found is not None
    assert found.typical(2, ["4.png", "3.png", "0.png"]) == ["3.png", "0.png"]

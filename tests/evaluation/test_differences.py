"""Differences between methods: pairing, direction, distance to the truth, and the words for them."""

from __future__ import annotations

import numpy as np
import pytest

from gmd_ray.evaluation.differences import Difference, corrected, paired
from tests.evaluation.test_results import evaluation


def by_image(values: np.ndarray) -> dict[str, float]:
    return {f"{i}.png": float(value) for i, value in enumerate(values)}


@pytest.mark.parametrize(
    ("gain", "higher", "word"),
    [(1.0, True, "better"), (-1.0, True, "worse"), (1.0, False, "worse"), (-1.0, False, "better")],
)
def test_words_follow_the_direction_of_the_metric(gain: float, higher: bool, word: str) -> None:
    rng = np.random.default_rng(0)
    theirs = rng.normal(20, 3, 30)
    found = paired(by_image(theirs + gain + rng.normal(0, 0.5, 30)), by_image(theirs), higher_is_better=higher)
    assert found is not None
    assert (found.word, found.phrase, found.lower_is_better) == (word, word, not higher)
    assert found.gain == (found.mean if higher else -found.mean)


def test_noise_is_no_difference_and_few_images_say_nothing() -> None:
    rng = np.random.default_rng(2)
    theirs, noise = rng.normal(20, 3, 30), rng.normal(0, 1, 30)
    found = paired(by_image(theirs + noise - noise.mean() + 0.1), by_image(theirs))
    assert found is not None
    assert found.word == "no difference seen"
    few = paired(by_image(theirs[:5] + 1), by_image(theirs[:5]))
    assert few is not None
    assert (few.word, few.low, few.high) == ("too few images", None, None)


def test_a_score_that_calls_noise_best_is_judged_by_its_distance_to_the_truth() -> None:
    """NIQE on camera noise: the photo 6.8, the adapted student 11.3, the ground truth 11.2; lower is "better"."""
    rng = np.random.default_rng(3)
    truth = rng.normal(11.2, 1, 48)
    photo, adapted = truth - 4.4 + rng.normal(0, 0.3, 48), truth + 0.1 + rng.normal(0, 0.3, 48)
    plain = paired(by_image(adapted), by_image(photo), higher_is_better=False)
    judged = paired(by_image(adapted), by_image(photo), higher_is_better=False, truth=by_image(truth))
    assert plain is not None
    assert judged is not None
    assert plain.word == "worse"
    assert (judged.word, judged.phrase, judged.to_truth) == ("better", "closer to the truth", True)
    expected = np.abs(adapted - truth).mean() - np.abs(photo - truth).mean()
    assert judged.mean == pytest.approx(expected, abs=1e-12)
    assert judged.lower_is_better
    back = paired(by_image(photo), by_image(adapted), higher_is_better=True, truth=by_image(truth))
    assert back is not None
    assert (back.word, back.phrase) == ("worse", "farther from the truth")


def test_images_without_a_truth_do_not_count_where_others_have_one() -> None:
    values = by_image(np.arange(10.0))
    truth = {image: value for image, value in values.items() if image != "3.png"}
    found = paired(values, values, truth=truth)
    assert found is not None
    assert (found.n, found.mean) == (9, 0.0)


def test_an_evaluation_corrects_for_the_number_of_its_comparisons() -> None:
    """One difference that is clear alone is no longer clear among twenty."""
    rng = np.random.default_rng(8)
    base = rng.normal(20, 3, 30)
    noise = rng.normal(0, 1, 30)
    lucky = base + (noise - noise.mean()) / noise.std(ddof=1) + 0.42  # t = 2.3, p = 0.03
    alone = {("baseline", "psnr"): list(base), ("adapted", "psnr"): list(lucky)}
    many = alone | {(f"other{i}", "psnr"): list(base + rng.normal(0, 1, 30)) for i in range(19)}
    first, second = (evaluation(values).difference("adapted", "target", "psnr") for values in (alone, many))
    assert first is not None
    assert second is not None
    assert first.word == "better"
    assert first.adjusted_p == first.p == second.p
    assert second.adjusted_p is not None
    assert first.p is not None
    assert second.adjusted_p > 0.3
    assert (second.low, second.high) == (first.low, first.high), "the interval itself is of one difference"
    assert second.word == "no difference seen"


def test_a_lone_difference_takes_its_own_p_value() -> None:
    assert Difference(1.0, 0.5, 1.5, 8, 0, p=0.01).word == "better"
    assert Difference(1.0, 0.5, 1.5, 8, 0, p=0.01, adjusted_p=0.2).word == "no difference seen"


def test_a_correction_leaves_gaps_where_they_are() -> None:
    """Holm of 0.03 and 0.01: 0.01 x 2, then 0.03; comparisons without a p-value do not count."""
    few = Difference(1.0, None, None, 2, 0)
    found = corrected([Difference(1.0, 0.1, 1.9, 8, 0, p=0.03), None, few, Difference(1.0, 0.5, 1.5, 8, 0, p=0.01)])
    assert found[1:3] == [None, few]
    assert [each.adjusted_p for each in found if each is not None and each.p is not None] == pytest.approx([0.03, 0.02])

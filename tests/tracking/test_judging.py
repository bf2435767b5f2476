"""Gates and the words about them: intervals, distances to the truth, other rows, and judging without promoting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from gmd_ray.config import Config, PromotionGate
from gmd_ray.evaluation import Evaluation
from gmd_ray.tracking import Decision, RegisteredVersion, judge, promote, register, start_run
from tests.tracking.measures import figures, measured, student_file, version_of


def noisy(adapted: float, truth: float | None = 11.2) -> Evaluation:
    """NIQE on real noise: about 6.8 on the photo's restored version, by default 11.2 on its ground truth."""
    rng = np.random.default_rng(0)
    base = rng.normal(0, 0.5, 20)
    values: dict[tuple[str, str, str], list[float | None]] = {
        ("baseline", "target", "niqe"): list(base + 6.8),
        ("adapted", "target", "niqe"): list(base + adapted + rng.normal(0, 0.2, 20)),
    }
    if truth is not None:
        values["hq", "target", "niqe"] = list(base + truth)
    return measured(values)


def test_a_no_reference_gate_asks_for_a_smaller_distance_to_the_truth(run: Config, tmp_path: Path) -> None:
    """11.3 against 6.8 is a loss of NIQE, and a gain of 4.2 towards the truth's 11.2."""
    run.tracking.gates = [PromotionGate(metric="niqe", min_gain=1.0)]
    _, decision = version_of(run, student_file(tmp_path), noisy(11.3))
    assert decision.promoted, decision.reasons
    assert decision.reasons[0].startswith("holds: target niqe 11.")
    assert "towards the ground truth over baseline (n=20) >= 1" in decision.reasons[0]
    run.out = str(tmp_path / "second")
    _, decision = version_of(run, student_file(tmp_path, b"other"), noisy(5.0))
    assert not decision.promoted, "a lower NIQE that is farther from the truth"
    run.out = str(tmp_path / "third")
    _, decision = version_of(run, student_file(tmp_path, b"third"), noisy(5.0, truth=None))
    assert decision.reasons[0].startswith("holds: target niqe 4.9"), "without a truth the metric's own direction counts"


def test_a_verdict_gives_the_interval_of_the_gain(run: Config, tmp_path: Path) -> None:
    run.tracking.gates = [PromotionGate(metric="niqe")]
    evaluation = noisy(6.0, truth=None)
    difference = evaluation.difference("adapted", "target", "niqe")
    assert difference is not None
    assert difference.low is not None
    assert difference.high is not None
    _, decision = version_of(run, student_file(tmp_path), evaluation)
    # Lower is better, so that the ends change places and signs.
    assert f"[{-difference.high:+.3g}, {-difference.low:+.3g}] over baseline (n=20)" in decision.reasons[0]


def test_a_champion_without_values_by_image_cannot_be_held_against_the_truth(
    run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.tracking.gates = [PromotionGate(metric="niqe")]
    assert version_of(run, student_file(tmp_path), noisy(11.3))[1].promoted
    run.out = str(tmp_path / "second")
    monkeypatch.setattr(RegisteredVersion, "evaluation", lambda version: None)  # one of an earlier gmd_ray
    _, decision = version_of(run, student_file(tmp_path, b"other"), noisy(11.25))
    assert not decision.promoted
    assert decision.reasons[1].startswith(
        "refused: not compared: target niqe: champion (version 1) no longer has the values by image, which are held "
        "against the ground truth's"
    )


@pytest.mark.parametrize(("against", "promoted"), [("lq", True), ("Hi-Diff", False)])
def test_a_gate_may_name_any_row(against: str, promoted: bool, run: Config, tmp_path: Path) -> None:
    run.tracking.gates = [PromotionGate(against=against)]
    evaluation = measured(
        {
            ("lq", "target", "psnr"): [19, 21, 23],
            ("baseline", "target", "psnr"): [20, 22, 24],
            ("adapted", "target", "psnr"): [20.5, 22.5, 24.5],
            ("Hi-Diff", "target", "psnr"): [21, 23, 25],
        }
    )
    assert version_of(run, student_file(tmp_path), evaluation)[1].promoted == promoted


def test_judging_says_what_promoting_would_and_moves_nothing(run: Config, client: MlflowClient, tmp_path: Path) -> None:
    run.tracking.gates = [PromotionGate(min_gain=0.4)]
    first = version_of(run, student_file(tmp_path), figures(0.5))
    assert first[1].promoted
    # The run's own version is the champion: it is not compared with itself.
    own = judge(run, figures(0.5))
    assert own == Decision(
        True, ["holds: target psnr 22.5: gain +0.5 over baseline (n=3) >= 0.4 (too few images)"], "1"
    )
    run.tracking.gates = [PromotionGate(min_gain=0.6)]
    stricter = judge(run, figures(0.5))
    assert (stricter.promoted, stricter.version) == (True, "1"), "it still is, though these gates would not let it"
    assert stricter.reasons[0].startswith("refused: target psnr")
    # Another run, which has registered nothing yet, against that champion.
    run.out, run.tracking.gates = str(tmp_path / "other"), [PromotionGate()]
    other = judge(run, figures(0.3))
    assert (other.promoted, other.version) == (False, None)
    assert "gain -0.2 over champion (version 1) 22.5 (n=3) is not >= 0" in other.reasons[1]
    with start_run(run, {}) as recorder:
        version = register(run, recorder, student_file(tmp_path, b"other"), figures(0.3))
        assert promote(run, recorder, version, figures(0.3)).reasons == other.reasons
    aliases = {name: str(n) for name, n in client.get_registered_model(run.tracking.model).aliases.items()}
    assert aliases == {"challenger": "2", "champion": "1"}


def test_judging_makes_no_database(run: Config, tmp_path: Path) -> None:
    run.tracking.uri, run.out = None, str(tmp_path / "untracked")
    assert judge(run, figures(0.5)).reasons[0].startswith("holds")
    run.tracking.enabled = False
    assert judge(run, figures(0.5)).version is None
    assert not (tmp_path / "untracked").exists()

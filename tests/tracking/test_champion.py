"""The champion that a candidate would replace: compared with it, image by image."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gmd_ray.config import Config, PromotionGate
from gmd_ray.evaluation import Evaluation
from gmd_ray.tracking import Decision, promote_version
from gmd_ray.tracking.promotion import FORCE
from tests.tracking.measures import figures, measured, student_file, version_of


def champions(client: MlflowClient, cfg: Config) -> dict[str, str]:
    return {name: str(number) for name, number in client.get_registered_model(cfg.tracking.model).aliases.items()}


def with_source(target: float, source: float) -> Evaluation:
    """Two test sets of three images on which the adapted student gains so many dB."""
    return measured(
        {
            ("baseline", "target", "psnr"): [20, 22, 24],
            ("adapted", "target", "psnr"): [20 + target, 22 + target, 24 + target],
            ("baseline", "source", "psnr"): [30, 31, 32],
            ("adapted", "source", "psnr"): [30 + source, 31 + source, 32 + source],
        }
    )


@pytest.mark.parametrize("min_gain", [0.1, -30])
def test_a_worse_student_does_not_replace_a_better_champion(
    min_gain: float, run: Config, client: MlflowClient, tmp_path: Path
) -> None:
    """Gates against the baseline alone, as they are by default: +0.30, then +0.15, then +0.35."""
    run.tracking.gates = [PromotionGate(min_gain=min_gain)]
    outcomes = []
    for gain in (0.3, 0.15, 0.35):
        run.out = str(tmp_path / f"run{gain}")
        outcomes.append(version_of(run, student_file(tmp_path, str(gain).encode()), figures(gain)))
    assert [decision.promoted for _, decision in outcomes] == [True, False, True]
    first, second, third = (decision.reasons for _, decision in outcomes)
    assert len(first) == 1
    assert second[0].startswith("holds: target psnr 22.15: gain +0.15")
    assert second[1].startswith(
        "refused: target psnr 22.15: gain -0.15 over champion (version 1) 22.3 (n=3) is not >= 0 (too few images); "
        "a gate `against: champion`"
    )
    assert third[1].startswith("holds: target psnr 22.35: gain +0.05 over champion (version 1) 22.3 (n=3) >= 0")
    assert champions(client, run) == {"challenger": "3", "champion": "3", "previous": "1"}
    tag = client.get_model_version(run.tracking.model, "2").tags["promotion"]
    assert tag == f"{second[1]}; {second[0]}", "what refuses comes first, and its word once"
    assert client.get_model_version(run.tracking.model, "3").tags["promotion"] == f"accepted: {'; '.join(third)}"


def test_lower_is_better_for_niqe(run: Config, tmp_path: Path) -> None:
    run.tracking.gates = [PromotionGate(metric="niqe")]

    def niqe(mean: float) -> Evaluation:
        return measured({("baseline", "target", "niqe"): [9, 9], ("adapted", "target", "niqe"): [mean, mean]})

    promoted = [version_of(run, student_file(tmp_path, str(x).encode()), niqe(x))[1].promoted for x in (6, 7, 5)]
    assert promoted == [True, False, True]


@pytest.mark.parametrize(
    ("target", "source", "promoted"),
    [
        (0.5, -0.1, True),  # a little of what the gate lets a student forget
        (0.5, -0.15, True),
        (0.5, -0.2, False),  # within the gate, and 0.3 dB below the champion
        (0.39, 0.1, False),  # any loss on the photos that it is for
        (0.4, 0.1, True),  # the same again
    ],
)
def test_a_champion_counts_on_source_pairs_as_far_as_the_gate_goes(
    target: float, source: float, promoted: bool, run: Config, tmp_path: Path
) -> None:
    run.tracking.gates = [PromotionGate(), PromotionGate(dataset="source", min_gain=-0.2001)]
    assert version_of(run, student_file(tmp_path), with_source(0.4, 0.05))[1].promoted
    _, decision = version_of(run, student_file(tmp_path, b"new"), with_source(target, source))
    assert decision.promoted == promoted, decision.reasons
    assert len(decision.reasons) == 4


def test_a_gate_against_the_champion_speaks_for_its_figure(run: Config, tmp_path: Path) -> None:
    run.tracking.gates = [PromotionGate(), PromotionGate(against="champion", min_gain=-0.2)]
    assert version_of(run, student_file(tmp_path), figures(0.4))[1].promoted
    _, decision = version_of(run, student_file(tmp_path, b"new"), figures(0.3))
    assert decision.promoted, "a loss of 0.1 dB was allowed"
    assert len(decision.reasons) == 2


@pytest.mark.parametrize("lacking", ["figures", "test set"])
def test_a_champion_that_cannot_be_compared_is_replaced_only_by_hand(
    lacking: str, run: Config, client: MlflowClient, tmp_path: Path
) -> None:
    run.tracking.gates = [PromotionGate()]
    version_of(run, student_file(tmp_path), figures(0.5))
    evaluation = figures(0.1)
    if lacking == "figures":
        client.delete_model_version_tag(run.tracking.model, "1", "metric.target.psnr")
        reason = "champion (version 1) has no value to compare with"
    else:
        evaluation = measured({("baseline", "target", "psnr"): [20] * 4, ("adapted", "target", "psnr"): [20.1] * 4})
        reason = "champion (version 1) was measured on another test set"
    _, decision = version_of(run, student_file(tmp_path, b"new"), evaluation)
    assert not decision.promoted
    assert decision.reasons[1] == f"refused: not compared: target psnr: {reason}; {FORCE}"
    assert champions(client, run)["champion"] == "1"
    decision = promote_version(run, "2", "the old test set was wrong", anyway=True)
    assert decision.promoted
    assert champions(client, run) == {"challenger": "2", "champion": "2", "previous": "1"}
    tag = client.get_model_version(run.tracking.model, "2").tags["promotion"]
    assert tag.startswith("promoted against the gates (the old test set was wrong): refused: not compared")
    run.tracking.gates = []
    _, decision = version_of(run, student_file(tmp_path, b"newer"), evaluation)
    assert decision.reasons == [
        "no gates are set",
        "not compared with champion (version 2): a gate names what to compare",
    ]


def test_images_are_compared_one_by_one_with_the_values_that_travel_with_the_champion(
    run: Config, tmp_path: Path
) -> None:
    run.tracking.gates = [PromotionGate()]

    def evaluated(values: list[float | None], content: bytes) -> Decision:
        evaluation = measured({("baseline", "target", "psnr"): [10, 10, 10], ("adapted", "target", "psnr"): values})
        return version_of(run, student_file(tmp_path, content), evaluation)[1]

    assert evaluated([20, 22, 24], b"one").promoted
    run.out = str(tmp_path / "other")
    decision = evaluated([20.3, 22.1, 24.2], b"two")
    assert decision.reasons[1] == (
        "holds: target psnr 22.2: gain +0.2 over champion (version 1) 22 (n=3) >= 0 (too few images)"
    )
    # The champion's run has gone on to another student: the values are still those of the version.
    evaluated([5, 5, 5], b"three")
    decision = evaluated([20.5, 22.5, 24.5], b"four")
    assert decision.reasons[1].startswith(
        "holds: target psnr 22.5: gain +0.3 over champion (version 2) 22.2 (n=3) >= 0"
    )
    decision = evaluated([None, 30, 30], b"five")
    assert "adapted has no value on 1 images" in decision.reasons[0]

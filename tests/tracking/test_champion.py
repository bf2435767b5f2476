"""The champion that a candidate would replace: compared with it, and by one promotion at a time."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gmd_ray.config import Config, PromotionGate
from gmd_ray.evaluation import Evaluation
from gmd_ray.tracking import Decision, TrackingError, promote, promotion, register, registry, start_run
from gmd_ray.tracking.turns import TAG, turn
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
        "refused: target psnr 22.15: gain -0.15 over champion (version 1) 22.3 is not >= 0; a gate `against: champion`"
    )
    assert third[1].startswith("holds: target psnr 22.35: gain +0.05 over champion (version 1) 22.3 >= 0")
    assert champions(client, run) == {"challenger": "3", "champion": "3", "previous_champion": "1"}
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
def test_a_champion_that_cannot_be_compared_is_replaced_and_said_so(
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
    assert decision.promoted
    assert decision.reasons[1] == f"not compared: target psnr: {reason}"
    run.tracking.gates = []
    _, decision = version_of(run, student_file(tmp_path, b"newer"), evaluation)
    assert decision.reasons == [
        "no gates are set",
        "not compared with champion (version 2): a gate names what to compare",
    ]


def test_images_are_compared_one_by_one_where_the_champions_run_has_them(run: Config, tmp_path: Path) -> None:
    run.tracking.gates = [PromotionGate()]

    def evaluated(values: list[float | None], content: bytes) -> Decision:
        evaluation = measured({("baseline", "target", "psnr"): [10, 10, 10], ("adapted", "target", "psnr"): values})
        evaluation.save(run.out)
        with start_run(run, {}) as recorder:
            with recorder.stage("evaluate") as stage:
                stage.artifact(f"{run.out}/evaluation/metrics.parquet", "evaluation")
            version = register(run, recorder, student_file(tmp_path, content), evaluation)
            return promote(run, recorder, version, evaluation)

    assert evaluated([20, 22, 24], b"one").promoted
    run.out = str(tmp_path / "other")
    decision = evaluated([20.3, 22.1, 24.2], b"two")
    assert decision.reasons[1] == ("holds: target psnr 22.2: gain +0.2 over champion (version 1) 22 (n=3) >= 0")
    # The champion's run has gone on to another student: its images are not those of the version, its means are.
    evaluated([5, 5, 5], b"three")
    decision = evaluated([20.5, 22.5, 24.5], b"four")
    assert decision.reasons[1].startswith("holds: target psnr 22.5: gain +0.3 over champion (version 2) 22.2 >= 0")
    decision = evaluated([None, 30, 30], b"five")
    assert "adapted has no value on 1 images" in decision.reasons[0]


def test_two_promotions_at_once_cannot_both_win(
    run: Config, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both see a champion of +0.1; +0.5 and +0.3 would both beat it, and whoever comes last would stay."""
    run.tracking.gates = [PromotionGate()]
    version_of(run, student_file(tmp_path, b"first"), figures(0.1))
    meanwhile: list[threading.Thread] = []
    decisions: dict[float, Decision] = {}

    def attempt(gain: float) -> None:
        with start_run(replace(run, out=str(tmp_path / f"run{gain}")), {}) as recorder:
            version = register(run, recorder, student_file(tmp_path / str(gain), str(gain).encode()), figures(gain))
            decisions[gain] = promote(run, recorder, version, figures(gain))

    def slow(*args: object) -> list[promotion.Verdict]:
        if not meanwhile:  # the first is between reading the champion and moving the alias
            meanwhile.append(threading.Thread(target=attempt, args=(0.3,)))
            meanwhile[0].start()
            time.sleep(3)
            assert 0.3 not in decisions, "it waits"
        return promotion.judge_promotion(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(registry, "judge_promotion", slow)
    for gain in (0.5, 0.3):
        (tmp_path / str(gain)).mkdir()
    attempt(0.5)
    meanwhile[0].join()
    assert {gain: decision.promoted for gain, decision in decisions.items()} == {0.5: True, 0.3: False}
    assert client.get_model_version_by_alias(run.tracking.model, "champion").tags["metric.target.psnr"] == "22.5"


def test_a_server_is_held_by_a_tag(client: MlflowClient, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmd_ray.tracking.turns.SETTLE_S", 0.02)
    client.create_registered_model("held")
    with turn(client, "http://server", "held"):
        assert TAG in client.get_registered_model("held").tags
        with (
            pytest.raises(TrackingError, match="another promotion of held has not ended"),
            turn(client, "http://server", "held", timeout_s=0.2),
        ):
            pytest.fail("two at once")
    assert TAG not in client.get_registered_model("held").tags
    client.set_registered_model_tag("held", TAG, f"somebody {time.time() - 120:.0f} elsewhere")
    with turn(client, "http://server", "held", timeout_s=0.2):
        pass  # whoever set it has died

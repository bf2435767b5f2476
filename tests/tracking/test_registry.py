from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gmd_ray.config import Config, PromotionGate
from gmd_ray.progress import NullRecorder
from gmd_ray.tracking import MlflowRecorder, TrackingError, promote, register, start_run
from tests.evaluation.conftest import write_store
from tests.tracking.measures import figures, measured, student_file, version_of


def test_register_keeps_the_file_and_where_it_comes_from(run: Config, client: MlflowClient, tmp_path: Path) -> None:
    write_store(tmp_path / "out", [5.0, 4.0, None])
    path = student_file(tmp_path)
    with start_run(run, {}) as recorder:
        assert isinstance(recorder, MlflowRecorder)
        version = register(run, recorder, path, figures(0.5))
        again = register(run, recorder, path, figures(0.5))
    assert version == again == "1"
    found = client.get_model_version_by_alias(run.tracking.model, "challenger")
    assert str(found.version) == version
    assert found.run_id == recorder.run_id
    assert {name: found.tags[name] for name in ("teacher", "student", "scorer")} == {
        "teacher": "t0", "student": "s0", "scorer": "n0",
    }  # fmt: skip
    assert found.tags["pairs.inputs"] == "3"
    assert found.tags["metric.target.psnr"] == "22.5"
    folder = f"student/{found.tags['sha256'][:12]}"
    assert found.source.endswith(folder)
    kept = client.download_artifacts(recorder.run_id, f"{folder}/student.safetensors", str(tmp_path))
    assert Path(kept).read_bytes() == b"weights"


def test_a_directory_is_registered_whole(run: Config, client: MlflowClient, tmp_path: Path) -> None:
    student = tmp_path / "student"
    (student / "transformer").mkdir(parents=True)
    (student / "model_index.json").write_text("{}")
    (student / "transformer" / "weights.safetensors").write_bytes(b"weights")
    one, _ = version_of(run, str(student), figures(0.5))
    assert version_of(run, str(student), figures(0.5))[0] == one
    (student / "transformer" / "weights.safetensors").write_bytes(b"other weights")
    assert version_of(run, str(student), figures(0.6))[0] != one
    first = client.get_model_version(run.tracking.model, one)
    folder = first.source[first.source.index("student/") :]
    (tmp_path / "kept").mkdir()
    kept = client.download_artifacts(first.run_id, f"{folder}/student", str(tmp_path / "kept"))
    assert (Path(kept) / "transformer" / "weights.safetensors").read_bytes() == b"weights"


def test_other_weights_of_the_same_run_are_another_version_and_leave_the_first_alone(
    run: Config, client: MlflowClient, tmp_path: Path
) -> None:
    one, _ = version_of(run, student_file(tmp_path), figures(0.5))
    two, _ = version_of(run, student_file(tmp_path, b"other weights"), figures(0.6))
    assert (one, two) == ("1", "2")
    first = client.get_model_version(run.tracking.model, one)
    folder = first.source[first.source.index("student/") :]
    kept = client.download_artifacts(first.run_id, f"{folder}/student.safetensors", str(tmp_path))
    assert Path(kept).read_bytes() == b"weights"


def test_champion_changes_hands_only_for_a_gain(run: Config, client: MlflowClient, tmp_path: Path) -> None:
    run.tracking.gates = [PromotionGate(against="champion", min_gain=0.1)]
    outcomes = []
    for gain in (0.5, 0.55, 0.9):
        run.out = str(tmp_path / f"run{gain}")
        outcomes.append(version_of(run, student_file(tmp_path, str(gain).encode()), figures(gain)))
    assert [(version, decision.promoted) for version, decision in outcomes] == [("1", True), ("2", False), ("3", True)]
    assert "no champion to beat yet" in outcomes[0][1].reasons[0]
    assert "gain +0.05 over champion (version 1) 22.5 (n=3) is not >= 0.1" in outcomes[1][1].reasons[0]
    aliases = client.get_registered_model(run.tracking.model).aliases
    assert {name: str(number) for name, number in aliases.items()} == {
        "challenger": "3", "champion": "3", "previous": "1",
    }  # fmt: skip
    assert (
        client.get_model_version(run.tracking.model, "2")
        .tags["promotion"]
        .startswith("refused: target psnr 22.55: gain")
    )
    # The last run again: nothing moves.
    version, decision = version_of(run, student_file(tmp_path, b"0.9"), figures(0.9))
    assert (version, decision.promoted) == ("3", True)
    assert "champion already" in decision.reasons[0]


@pytest.mark.parametrize(
    ("gate", "holds", "reason"),
    [
        (PromotionGate(), True, "gain +0.5 over baseline (n=3) >= 0"),
        (PromotionGate(min_gain=0.6), False, "gain +0.5 over baseline (n=3) is not >= 0.6"),
        (PromotionGate(metric="niqe"), True, "gain +1 over baseline"),
        (PromotionGate(metric="niqe", min_gain=1.5), False, "is not >= 1.5"),
        (PromotionGate(against="median"), False, "gain -0.5"),
        (PromotionGate(against="source_only"), False, "no value of source_only"),
        (PromotionGate(dataset="source"), False, "no test set 'source'"),
        (PromotionGate(metric="lpips"), False, "no weights at hand"),
        (PromotionGate(metric="ssim"), False, "it was not measured"),
        (PromotionGate(metric="dists"), False, "no value of adapted (needs ground truth, which this test set lacks)"),
    ],
)
def test_each_gate_says_why(gate: PromotionGate, holds: bool, reason: str, run: Config, tmp_path: Path) -> None:
    evaluation = measured(
        {
            ("baseline", "target", "psnr"): [20, 22, 24],
            ("adapted", "target", "psnr"): [20.5, 22.5, 24.5],
            ("median", "target", "psnr"): [21, 23, 25],
            ("baseline", "target", "niqe"): [6, 7, 8],
            ("adapted", "target", "niqe"): [5, 6, 7],
        },
        unavailable={"lpips": "no weights at hand"},
        lacking=["dists"],
    )
    run.tracking.gates = [gate]
    _, decision = version_of(run, student_file(tmp_path), evaluation)
    assert decision.promoted == holds
    assert len(decision.reasons) == 1
    assert decision.reasons[0].startswith("holds" if holds else "refused")
    assert reason in decision.reasons[0]


def test_all_gates_must_hold(run: Config, client: MlflowClient, tmp_path: Path) -> None:
    run.tracking.gates = [PromotionGate(), PromotionGate(min_gain=9)]
    _, decision = version_of(run, student_file(tmp_path), figures(0.5))
    assert not decision.promoted
    assert [reason.split(":")[0] for reason in decision.reasons] == ["holds", "refused"]
    assert "champion" not in client.get_registered_model(run.tracking.model).aliases


def test_images_that_only_the_candidate_fails_on_refuse_it(run: Config, tmp_path: Path) -> None:
    evaluation = measured({("baseline", "target", "psnr"): [20, 22], ("adapted", "target", "psnr"): [29, None]})
    run.tracking.gates = [PromotionGate()]
    _, decision = version_of(run, student_file(tmp_path), evaluation)
    assert "no value on 1 images where baseline has one" in decision.reasons[0]


def test_a_champion_of_another_test_set_is_no_reference(run: Config, tmp_path: Path) -> None:
    run.tracking.gates = [PromotionGate(against="champion")]
    version_of(run, student_file(tmp_path), figures(0.5))
    longer = measured({("baseline", "target", "psnr"): [20] * 4, ("adapted", "target", "psnr"): [30] * 4})
    _, decision = version_of(run, student_file(tmp_path, b"new"), longer)
    assert not decision.promoted
    assert "another test set" in decision.reasons[0]


def test_an_untracked_run_registers_nothing(run: Config, tmp_path: Path) -> None:
    version = register(run, NullRecorder(), student_file(tmp_path), figures(0.5))
    decision = promote(run, NullRecorder(), version, figures(0.5))
    assert version is None
    assert not decision.promoted
    assert "tracking.enabled=false" in decision.reasons[0]


def test_a_missing_student_file_is_named(run: Config, tmp_path: Path) -> None:
    with start_run(run, {}) as recorder, pytest.raises(TrackingError, match="no such file"):
        register(run, recorder, str(tmp_path / "gone.safetensors"), figures(0.5))


def test_the_licence_of_the_teacher_is_registered_and_may_refuse(
    run: Config, client: MlflowClient, tmp_path: Path
) -> None:
    run.tracking.gates = [PromotionGate()]
    run.teacher.path, run.tracking.require_commercial_teacher = "black-forest-labs/FLUX.1-dev", True
    version, decision = version_of(run, student_file(tmp_path), figures(0.5))
    assert not decision.promoted
    [refusal] = [reason for reason in decision.reasons if reason.startswith("refused")]
    assert refusal.startswith("refused: the teacher's licence is non-commercial (FLUX.1 [dev] Non-Commercial License, ")
    assert "tracking.require_commercial_teacher is set" in refusal
    tags = client.get_model_version(run.tracking.model, version).tags
    assert tags["teacher.licence"] == "non-commercial"
    assert "LICENSE-FLUX1-dev" in tags["teacher.licence_source"]
    assert tags["promotion"].startswith("refused: the teacher's licence is non-commercial")
    run.teacher.licence = "commercial"
    version, decision = version_of(run, student_file(tmp_path, b"others"), figures(0.6))
    assert decision.promoted
    assert "holds: the teacher's licence is commercial (teacher.licence)" in decision.reasons
    assert client.get_model_version(run.tracking.model, version).tags["teacher.licence"] == "commercial"


def test_an_unknown_licence_refuses_only_where_one_is_asked_for(run: Config, tmp_path: Path) -> None:
    run.tracking.gates, run.teacher.path = [PromotionGate()], str(tmp_path)
    assert version_of(run, student_file(tmp_path), figures(0.5))[1].promoted
    run.tracking.require_commercial_teacher = True
    _, decision = version_of(run, student_file(tmp_path, b"others"), figures(0.6))
    assert not decision.promoted
    assert "the teacher's licence is unknown (no README.md with a license" in decision.reasons[-1]

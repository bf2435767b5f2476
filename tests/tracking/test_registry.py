from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from mlflow.tracking import MlflowClient

from gmd_ray.config import Config, GateConfig
from gmd_ray.evaluation import Evaluation
from gmd_ray.evaluation.results import PICTURES, ROWS, UNAVAILABLE
from gmd_ray.evaluation.table import NO_TRUTH
from gmd_ray.progress import NullRecorder
from gmd_ray.tracking import Decision, MlflowRecorder, TrackingError, gates, promote, register, registry, start_run
from gmd_ray.tracking.turns import TAG, turn
from tests.evaluation.conftest import write_store

HIGHER = {"psnr": True, "niqe": False}


def measured(
    values: Mapping[tuple[str, str, str], list[float | None]],
    unavailable: Mapping[str, str] | None = None,
    lacking: Sequence[str] = (),
) -> Evaluation:
    """(student, dataset, metric) -> value of image 0, 1, ..."""
    rows = [
        {
            "dataset": dataset,
            "id": f"{i}.png",
            "student": student,
            "metric": metric,
            "value": value,
            "error": "no luck" if value is None else None,
            "higher_is_better": HIGHER[metric],
        }
        for (student, dataset, metric), line in values.items()
        for i, value in enumerate(line)
    ]
    rows += [
        {"dataset": "target", "id": "0.png", "student": "adapted", "metric": metric, "error": UNAVAILABLE + reason}
        for metric, reason in (unavailable or {}).items()
    ]
    rows += [
        {"dataset": "target", "id": "0.png", "student": "adapted", "metric": metric, "error": NO_TRUTH}
        for metric in lacking
    ]
    students = tuple(dict.fromkeys(student for student, _, _ in values))
    table = pa.Table.from_pylist(rows, schema=ROWS)
    return Evaluation(table, PICTURES.empty_table(), students, ("psnr", "niqe", "lpips", "dists"), "crop_border=0")


def figures(gain: float) -> Evaluation:
    """A target test set on which the adapted student gains `gain` dB."""
    return measured(
        {("baseline", "target", "psnr"): [20, 22, 24], ("adapted", "target", "psnr"): [20 + gain, 22 + gain, 24 + gain]}
    )


def student_file(folder: Path, content: bytes = b"weights") -> str:
    path = folder / "student.safetensors"
    path.write_bytes(content)
    return str(path)


def version_of(cfg: Config, path: str, evaluation: Evaluation) -> tuple[str, Decision]:
    """Register and judge within the run of `cfg.out`."""
    with start_run(cfg, {}) as recorder:
        version = register(cfg, recorder, path, evaluation)
        assert version is not None
        return version, promote(cfg, recorder, version, evaluation)


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
    run.tracking.gates = [GateConfig(against="champion", min_gain=0.1)]
    outcomes = []
    for gain in (0.5, 0.55, 0.9):
        run.out = str(tmp_path / f"run{gain}")
        outcomes.append(version_of(run, student_file(tmp_path, str(gain).encode()), figures(gain)))
    assert [(version, decision.promoted) for version, decision in outcomes] == [("1", True), ("2", False), ("3", True)]
    assert "no champion to beat yet" in outcomes[0][1].reasons[0]
    assert "gain +0.05 over champion (version 1) 22.5 is not >= 0.1" in outcomes[1][1].reasons[0]
    aliases = client.get_registered_model(run.tracking.model).aliases
    assert {name: str(number) for name, number in aliases.items()} == {
        "challenger": "3", "champion": "3", "previous_champion": "1",
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
        (GateConfig(), True, "gain +0.5 ± 0 over baseline (n=3) >= 0"),
        (GateConfig(min_gain=0.6), False, "gain +0.5 ± 0 over baseline (n=3) is not >= 0.6"),
        (GateConfig(metric="niqe"), True, "gain +1 ± 0 over baseline"),
        (GateConfig(metric="niqe", min_gain=1.5), False, "is not >= 1.5"),
        (GateConfig(against="median"), False, "gain -0.5"),
        (GateConfig(against="source_only"), False, "no value of source_only"),
        (GateConfig(dataset="source"), False, "no test set 'source'"),
        (GateConfig(metric="lpips"), False, "no weights at hand"),
        (GateConfig(metric="ssim"), False, "it was not measured"),
        (GateConfig(metric="dists"), False, "no value of adapted (needs ground truth, which this test set lacks)"),
    ],
)
def test_each_gate_says_why(gate: GateConfig, holds: bool, reason: str, run: Config, tmp_path: Path) -> None:
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
    run.tracking.gates = [GateConfig(), GateConfig(min_gain=9)]
    _, decision = version_of(run, student_file(tmp_path), figures(0.5))
    assert not decision.promoted
    assert [reason.split(":")[0] for reason in decision.reasons] == ["holds", "refused"]
    assert "champion" not in client.get_registered_model(run.tracking.model).aliases


def test_images_that_only_the_candidate_fails_on_refuse_it(run: Config, tmp_path: Path) -> None:
    evaluation = measured({("baseline", "target", "psnr"): [20, 22], ("adapted", "target", "psnr"): [29, None]})
    run.tracking.gates = [GateConfig()]
    _, decision = version_of(run, student_file(tmp_path), evaluation)
    assert "no value on 1 images where baseline has one" in decision.reasons[0]


def test_a_champion_of_another_test_set_is_no_reference(run: Config, tmp_path: Path) -> None:
    run.tracking.gates = [GateConfig(against="champion")]
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
    run.tracking.gates = [GateConfig(min_gain=min_gain)]
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
    run.tracking.gates = [GateConfig(metric="niqe")]

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
    run.tracking.gates = [GateConfig(), GateConfig(dataset="source", min_gain=-0.2001)]
    assert version_of(run, student_file(tmp_path), with_source(0.4, 0.05))[1].promoted
    _, decision = version_of(run, student_file(tmp_path, b"new"), with_source(target, source))
    assert decision.promoted == promoted, decision.reasons
    assert len(decision.reasons) == 4


def test_a_gate_against_the_champion_speaks_for_its_figure(run: Config, tmp_path: Path) -> None:
    run.tracking.gates = [GateConfig(), GateConfig(against="champion", min_gain=-0.2)]
    assert version_of(run, student_file(tmp_path), figures(0.4))[1].promoted
    _, decision = version_of(run, student_file(tmp_path, b"new"), figures(0.3))
    assert decision.promoted, "a loss of 0.1 dB was allowed"
    assert len(decision.reasons) == 2


@pytest.mark.parametrize("lacking", ["figures", "test set"])
def test_a_champion_that_cannot_be_compared_is_replaced_and_said_so(
    lacking: str, run: Config, client: MlflowClient, tmp_path: Path
) -> None:
    run.tracking.gates = [GateConfig()]
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
    run.tracking.gates = [GateConfig()]

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
    assert decision.reasons[1] == (
        "holds: target psnr 22.2: gain +0.2 ± 0.058 over champion (version 1) 22 (n=3) >= 0"
    )  # gaps 0.3, 0.1, 0.2: sd 0.1, over the root of 3
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
    run.tracking.gates = [GateConfig()]
    version_of(run, student_file(tmp_path, b"first"), figures(0.1))
    meanwhile: list[threading.Thread] = []
    decisions: dict[float, Decision] = {}

    def attempt(gain: float) -> None:
        with start_run(replace(run, out=str(tmp_path / f"run{gain}")), {}) as recorder:
            version = register(run, recorder, student_file(tmp_path / str(gain), str(gain).encode()), figures(gain))
            decisions[gain] = promote(run, recorder, version, figures(gain))

    def slow(*args: object) -> list[gates.Verdict]:
        if not meanwhile:  # the first is between reading the champion and moving the alias
            meanwhile.append(threading.Thread(target=attempt, args=(0.3,)))
            meanwhile[0].start()
            time.sleep(3)
            assert 0.3 not in decisions, "it waits"
        return gates.judge(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(registry, "judge", slow)
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

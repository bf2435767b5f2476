from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, TEMPORARILY_UNAVAILABLE, UNAUTHENTICATED
from mlflow.tracking import MlflowClient

from gmd_ray.config import Config
from gmd_ray.config.load import resolved
from gmd_ray.config.secrets import redact
from gmd_ray.progress import NullRecorder
from gmd_ray.tracking import MlflowRecorder, TrackingError, start_run
from gmd_ray.tracking.client import artifact_location, default_uri, is_refusal


def started(cfg: Config) -> MlflowRecorder:
    """The run, begun and ended."""
    with start_run(cfg, resolved(cfg)) as recorder:
        assert isinstance(recorder, MlflowRecorder)
    return recorder


def test_run_tree(run: Config, client: MlflowClient, tmp_path: Path) -> None:
    run.teacher.steps = 7
    file = tmp_path / "manifest.json"
    file.write_text("{}")
    with start_run(run, resolved(run)) as parent:
        assert isinstance(parent, MlflowRecorder)
        with parent.stage("generate") as stage:
            assert isinstance(stage, MlflowRecorder)
            stage.params({"pool": {"min": 1, "sizes": [1, 2], "none": None}})
            stage.metrics({"loss": 0.5}, step=3)
            stage.metrics({"loss": 0.25, "psnr (dB)": 30.0}, step=4)
            stage.tags({"teacher": "abc"})
            stage.artifact(str(file), "pairs")
            assert client.get_run(stage.run_id).info.status == "RUNNING"
    top, child = client.get_run(parent.run_id), client.get_run(stage.run_id)
    assert top.info.status == child.info.status == "FINISHED"
    assert top.data.params["teacher.steps"] == "7"
    assert top.data.params["out"] == run.out
    assert child.data.tags["mlflow.parentRunId"] == parent.run_id
    assert child.info.run_name == "generate"
    assert child.data.params == {"pool.min": "1", "pool.sizes": "[1, 2]", "pool.none": "null"}
    assert [(m.step, m.value) for m in client.get_metric_history(stage.run_id, "loss")] == [(3, 0.5), (4, 0.25)]
    assert child.data.metrics["psnr _dB_"] == 30.0
    assert child.data.tags["teacher"] == "abc"
    assert [item.path for item in client.list_artifacts(stage.run_id, "pairs")] == ["pairs/manifest.json"]
    kept = client.download_artifacts(parent.run_id, "config.json", str(tmp_path))
    assert json.loads(Path(kept).read_text())["teacher"]["steps"] == 7


def test_the_same_directory_continues_the_same_runs(run: Config, client: MlflowClient) -> None:
    ids = []
    for steps in (5, 5, 6):
        run.teacher.steps = steps
        with start_run(run, resolved(run)) as parent, parent.stage("train") as stage:
            assert isinstance(parent, MlflowRecorder)
            assert isinstance(stage, MlflowRecorder)
            stage.params({"lr": 0.1})
            assert client.get_run(parent.run_id).info.status == "RUNNING"
            ids.append((parent.run_id, stage.run_id))
    assert len(set(ids)) == 1
    # A parameter is written once in MLflow; what changed since then is a tag.
    top = client.get_run(ids[0][0])
    assert top.data.params["teacher.steps"] == "5"
    assert top.data.tags["changed.teacher.steps"] == "6"
    experiment = client.get_experiment_by_name(run.tracking.experiment)
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_another_directory_or_a_deleted_run_gets_a_new_run(run: Config, client: MlflowClient, tmp_path: Path) -> None:
    first = started(run).run_id
    client.delete_run(first)
    second = started(run).run_id
    run.out = str(tmp_path / "elsewhere")
    assert len({first, second, started(run).run_id}) == 3


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")]
)
def test_status_says_how_a_run_ended(run: Config, client: MlflowClient, error: BaseException, status: str) -> None:
    ids: list[str] = []

    def interrupted() -> None:
        with start_run(run, {}) as parent, parent.stage("a") as stage:
            ids.extend([parent.run_id, stage.run_id])  # type: ignore[union-attr]
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert [client.get_run(run_id).info.status for run_id in ids] == [status, status]


def test_values_that_mlflow_refuses_do_not_end_a_run(
    run: Config, client: MlflowClient, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    long = {"x" * 300: "y" * 10_000, "many": {f"k{i}": i for i in range(250)}}
    with start_run(run, {}) as recorder:
        assert isinstance(recorder, MlflowRecorder)
        recorder.params(long)
        recorder.params(long)
        recorder.metrics({"loss": float("nan"), "psnr": 1.0, "top": float("inf")}, step=2)
        recorder.metrics({f"m{i}": float(i) for i in range(1200)})
        recorder.tags({f"t{i}": "z" * 9000 for i in range(120)})
        recorder.artifact(str(tmp_path / "not there.txt"))
        recorder.tags({"after": "yes"})
    data = client.get_run(recorder.run_id).data
    assert len(data.params) == 251
    assert sorted(len(value) for value in data.params.values())[-1] == 6000
    assert len(data.metrics) == 1201
    assert "loss" not in data.metrics
    assert data.tags["after"] == "yes"
    assert data.tags["t119"].endswith("...")
    assert "metric loss is nan at step 2: not logged" in caplog.text
    assert "MLflow refused file" in caplog.text


def test_a_pickled_recorder_writes_to_the_same_run(run: Config, client: MlflowClient) -> None:
    with start_run(run, {}) as recorder:
        copy = pickle.loads(pickle.dumps(recorder))
        copy.metrics({"loss": 1.0}, step=1)
    assert client.get_run(recorder.run_id).data.metrics == {"loss": 1.0}  # type: ignore[union-attr]


def test_untracked(run: Config) -> None:
    run.tracking.enabled = False
    run.tracking.uri = "http://nobody.invalid"
    with start_run(run, {}) as recorder:
        assert isinstance(recorder, NullRecorder)


def test_where_things_go_by_default(tmp_path: Path) -> None:
    assert default_uri(str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    assert artifact_location(default_uri(str(tmp_path)), "/runs/a") == f"file://{tmp_path}/mlartifacts"
    assert artifact_location("http://server:5000", "/runs/a") is None
    assert artifact_location("postgresql://db/x", "/runs/a") == "file:///runs/a/mlartifacts"
    assert artifact_location("postgresql://db/x", "s3://bucket/a/") == "s3://bucket/a/mlartifacts"
    assert artifact_location("postgresql://db/x", "s3://KEY:SECRET@bucket/a") == "s3://bucket/a/mlartifacts"
    with pytest.raises(TrackingError, match=r"set tracking\.uri"):
        default_uri("s3://bucket/a")


def test_a_place_for_files_that_cannot_be_written_to_costs_the_files_alone(
    run: Config, client: MlflowClient, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    blocked, file = tmp_path / "a file", tmp_path / "report.html"
    blocked.write_text("")
    file.write_text("")
    experiment = client.create_experiment(run.tracking.experiment, (blocked / "mlartifacts").as_uri())
    with start_run(run, resolved(run)) as parent, parent.stage("generate") as stage:
        stage.artifact(str(file))
        stage.metrics({"psnr": 30.0})
    found = {item.info.run_name: item for item in client.search_runs([experiment])}
    assert found["generate"].data.metrics == {"psnr": 30.0}
    assert {item.info.status for item in found.values()} == {"FINISHED"}
    assert "MLflow refused file" in caplog.text
    assert "lost:" not in caplog.text


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (FileNotFoundError(), True),
        (PermissionError(), True),
        (NotADirectoryError(), True),
        (IsADirectoryError(), True),
        (ConnectionError(), False),
        (TimeoutError(), False),
        (OSError("no space left on device"), False),
        (MlflowException("no such run", RESOURCE_DOES_NOT_EXIST), True),
        (MlflowException("the token is out of date", UNAUTHENTICATED), False),
        (MlflowException("away", TEMPORARILY_UNAVAILABLE), False),
    ],
)
def test_refused_or_away(error: Exception, refused: bool) -> None:
    assert is_refusal(error) == refused


def test_importing_the_room_does_not_import_mlflow() -> None:
    code = "import sys, gmd_ray.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False).returncode == 0


def test_redact() -> None:
    assert redact("at https://a:b@host/x and s3://bucket/k@v") == "at https://***@host/x and s3://bucket/k@v"
    assert redact("http://me:p@ss@host:5000") == "http://***@host:5000"
    harmless = json.dumps({"uri": "https://host", "mail": "a@b"})
    assert redact(harmless) == harmless


def test_no_password_reaches_mlflow(run: Config, client: MlflowClient, tmp_path: Path) -> None:
    run.student.path = "https://me:SECRET@host/student.pth"
    run.teacher.path = "https://me:SECRET@host/teacher"
    run.evaluation.weights = {"niqe": "s3://KEY:SECRET@bucket/niqe.mat"}
    with start_run(run, resolved(run)) as recorder:
        assert isinstance(recorder, MlflowRecorder)
        recorder.tags({"note": "see s3://KEY:SECRET@bucket/a"})
        recorder.text("s3://KEY:SECRET@bucket", "note.txt")
        manifest = tmp_path / "manifest.json"
        manifest.write_text('{"student": "s3://KEY:SECRET@bucket"}')
        recorder.artifact(str(manifest), "pairs")
    found = client.get_run(recorder.run_id)
    assert found.data.tags["teacher.path"] == "https://***@host/teacher"
    assert found.data.tags["note"] == "see s3://***@bucket/a"
    assert "SECRET" not in str(found.to_dictionary())
    names = ("config.json", "note.txt", "pairs/manifest.json")
    (tmp_path / "kept").mkdir()
    kept = [client.download_artifacts(recorder.run_id, name, str(tmp_path / "kept")) for name in names]
    assert all("***@bucket" in Path(path).read_text() for path in kept)
    assert not any("SECRET" in Path(path).read_text() for path in kept)


def test_paths_of_a_job_are_those_that_were_submitted(
    run: Config, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray copies the working directory to a place of its own, and throws that away."""
    monkeypatch.chdir(tmp_path)
    run.student.path, run.teacher.path = str(tmp_path / "weights" / "student.pth"), "/models/flux"
    assert client.get_run(started(run).run_id).data.tags["student.path"] == run.student.path
    monkeypatch.setattr("gmd_ray.tracking.runs.in_job", lambda: True)
    tags = client.get_run(started(run).run_id).data.tags
    assert (tags["student.path"], tags["teacher.path"]) == ("weights/student.pth", "/models/flux")

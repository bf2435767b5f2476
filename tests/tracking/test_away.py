"""MLflow away at any moment: the run goes on, and what could not be sent is kept and sent later."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gmd_ray.cli import main
from gmd_ray.config import Config
from gmd_ray.tracking import MlflowRecorder, TrackingError, start_run
from gmd_ray.tracking.outbox import Outbox
from gmd_ray.tracking.runs import kept_folder


@pytest.fixture(autouse=True)
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def kept(cfg: Config) -> list[str]:
    """Labels of the entries that wait in the run directory."""
    files = sorted(Path(kept_folder(cfg.out)).glob("*.json"))
    return [label for file in files for _, _, _, label in json.loads(file.read_text())]


def test_a_server_that_is_not_there_is_one_line_soon(run: Config, closed_port: int) -> None:
    run.tracking.uri = f"http://me:secret@127.0.0.1:{closed_port}"
    with (
        pytest.raises(TrackingError, match=r"MLflow at http://\*\*\*@127.*tracking\.uri") as caught,
        start_run(run, {}),
    ):
        pytest.fail("the run began")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_goes_away_loses_nothing_if_it_comes_back(
    run: Config, client: MlflowClient, broken_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    with start_run(run, {}) as recorder:
        assert isinstance(recorder, MlflowRecorder)
        outbox = recorder.outbox
        good, outbox._client = outbox.client, MlflowClient(broken_server)
        recorder.metrics({"loss": 1.0}, step=1)
        start = time.monotonic()
        for step in range(2, 50):
            recorder.metrics({"loss": 1.0}, step=step)
        assert time.monotonic() - start < 1  # no further try for a while
        with recorder.stage("evaluate") as stage:
            stage.metrics({"psnr": 30.0})
        assert client.get_run(recorder.run_id).data.metrics == {}
        outbox._client = good
    run_data = client.get_run(recorder.run_id)
    assert [m.step for m in client.get_metric_history(recorder.run_id, "loss")] == list(range(1, 50))
    # No child run could be made, so its figures are the parent's, under its name.
    assert run_data.data.metrics["evaluate.psnr"] == 30.0
    assert run_data.info.status == "FINISHED"
    assert caplog.text.count("does not answer") == 1


def test_what_could_not_be_sent_is_sent_by_the_next_command(
    run: Config, client: MlflowClient, broken_server: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    report = Path(run.out) / "report.html"
    with start_run(run, {}) as recorder:
        assert isinstance(recorder, MlflowRecorder)
        assert recorder.unsent == ""
        report.write_text("a page")
        recorder.outbox._client = MlflowClient(broken_server)
        for step in range(3):
            recorder.metrics({"loss": 1.0}, step=step)
        recorder.params({"lr": 0.1})
        recorder.tags({"note": "kept"})
        recorder.artifact(str(report))
    assert kept(run) == [*["metrics loss"] * 3, "parameters lr", "tags note", f"file {report}", "status FINISHED"]
    assert "did not come back; kept in" in recorder.unsent
    assert "`gmd-ray sync`: metrics loss (x3), parameters lr" in recorder.unsent
    assert client.get_run(recorder.run_id).data.metrics == {}
    with start_run(run, {}) as again:
        assert isinstance(again, MlflowRecorder)
        assert again.run_id == recorder.run_id
        assert client.get_run(recorder.run_id).info.status == "RUNNING", "the old status is not the new one"
    found = client.get_run(recorder.run_id)
    assert [point.step for point in client.get_metric_history(recorder.run_id, "loss")] == [0, 1, 2]
    assert (found.data.params["lr"], found.data.tags["note"], found.info.status) == ("0.1", "kept", "FINISHED")
    assert [item.path for item in client.list_artifacts(recorder.run_id)].count("report.html") == 1
    assert again.unsent == ""
    assert kept(run) == []


def test_sync_sends_it_as_well(
    run: Config, client: MlflowClient, broken_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_run(run, {}) as recorder:
        assert isinstance(recorder, MlflowRecorder)
        recorder.outbox._client = MlflowClient(broken_server)
        recorder.metrics({"loss": 1.0}, step=1)
    assert main(["sync", run.out, f"tracking.uri={broken_server}"]) == 1
    assert "did not come back; kept in" in capsys.readouterr().out
    assert kept(run) == ["metrics loss", "status FINISHED"]
    assert main(["sync", run.out, f"tracking.uri={run.tracking.uri}"]) == 0
    assert "2 entries sent" in capsys.readouterr().out
    assert client.get_run(recorder.run_id).data.metrics == {"loss": 1.0}
    assert client.get_run(recorder.run_id).info.status == "FINISHED"
    assert main(["sync", run.out, f"tracking.uri={run.tracking.uri}"]) == 0
    assert "MLflow has missed nothing" in capsys.readouterr().out


def test_a_process_that_is_killed_while_mlflow_is_away_leaves_what_it_had(
    run: Config, client: MlflowClient, broken_server: str
) -> None:
    with start_run(run, {}) as recorder:
        assert isinstance(recorder, MlflowRecorder)
    code = (
        "import os, sys\n"
        "from gmd_ray.tracking.outbox import Outbox\n"
        "from gmd_ray.tracking.recorder import MlflowRecorder\n"
        "uri, folder, run = sys.argv[1:]\n"
        "MlflowRecorder(uri, run, outbox=Outbox(uri, folder)).metrics({'loss': 2.0}, step=7)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", code, broken_server, kept_folder(run.out), recorder.run_id]
    assert subprocess.run(words, env=environment, check=False).returncode == -9
    assert kept(run) == ["metrics loss"]
    with start_run(run, {}):
        pass
    assert [point.step for point in client.get_metric_history(recorder.run_id, "loss")] == [7]


def test_a_run_that_goes_on_does_so_without_a_server(
    run: Config, client: MlflowClient, broken_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_run(run, {}) as recorder:
        assert isinstance(recorder, MlflowRecorder)
    with monkeypatch.context() as patch:
        patch.setattr("gmd_ray.tracking.outbox.connect", lambda uri: MlflowClient(broken_server))
        with start_run(run, {"steps": 5}) as away:
            assert isinstance(away, MlflowRecorder)
            with away.stage("train") as stage:
                stage.metrics({"loss": 1.0}, step=1)
        assert away.run_id == recorder.run_id
    assert "did not come back; kept in" in away.unsent
    with start_run(run, {}):
        pass
    found = client.get_run(recorder.run_id)
    assert found.data.metrics == {"train.loss": 1.0}
    assert found.data.params["steps"] == "5"


def test_without_a_folder_what_is_lost_is_named(
    run: Config, broken_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = MlflowRecorder(broken_server, "run", outbox=Outbox(broken_server))
    recorder.metrics({"loss": 1.0}, step=1)
    recorder.outbox.close()
    lost = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(lost) == 1
    assert "lost: metrics loss" in lost[0].getMessage()
    caplog.clear()
    recorder.outbox.close()
    assert caplog.text == "", "nothing of what was lost is sent, so nothing may say so"


def test_a_damaged_file_of_kept_entries_stays_and_is_named(run: Config, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(kept_folder(run.out))
    folder.mkdir(parents=True)
    (folder / "1.json").write_text("[[1, 2]]")
    with start_run(run, {}):
        pass
    assert "1.json: not entries of this program" in caplog.text
    assert (folder / "1.json").exists()

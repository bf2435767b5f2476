"""The registry on a real server over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from gmd_ray.cli import main
from gmd_ray.config import Config, PromotionGate
from gmd_ray.config.load import resolved
from gmd_ray.images.files.encode import encode_png
from gmd_ray.tracking import MlflowRecorder, history, promote, register, start_run
from tests import PATIENCE_S
from tests.evaluation.conftest import save_student, write_store
from tests.servers import running
from tests.servers.running import MlflowServer, running_mlflow
from tests.tracking.measures import figures, student_file, version_of

pytestmark = pytest.mark.slow
RIVAL = Path(__file__).with_name("rival.py")


@pytest.fixture
def remote(registry_server: MlflowServer, tmp_path: Path, request: pytest.FixtureRequest) -> Config:
    cfg = Config(out=str(tmp_path / "out"))
    cfg.tracking.uri = registry_server.url
    cfg.tracking.experiment = cfg.tracking.model = request.node.name
    cfg.tracking.gates = [PromotionGate()]
    return cfg


def test_two_processes_that_promote_at_once_cannot_both_win(remote: Config, tmp_path: Path) -> None:
    """Both judge against +0.1: +0.5 and +0.3 both beat it. The second to write is judged anew, against the first."""
    version_of(remote, student_file(tmp_path, b"first"), figures(0.1))
    for gain in (0.5, 0.3):
        run = Config(out=str(tmp_path / f"run{gain}"), tracking=remote.tracking)
        with start_run(run, {}) as recorder:
            register(run, recorder, student_file(tmp_path, str(gain).encode()), figures(gain))
    go, rivals = tmp_path / "go", []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for version in ("2", "3"):
        words = [sys.executable, str(RIVAL), str(remote.tracking.uri), remote.tracking.model, version, str(go)]
        rivals.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment))
    for rival in rivals:
        assert rival.stdout is not None
        assert rival.stdout.readline() == "judged\n"
    go.touch()
    said = [rival.communicate(timeout=PATIENCE_S)[0].splitlines() for rival in rivals]
    assert [rival.returncode for rival in rivals] == [0, 0]
    # Whoever comes first: the better one wins in the end, and the worse one never replaces it.
    assert said[0][0] == "promoted"
    client = MlflowClient(remote.tracking.uri)
    aliases = {name: str(number) for name, number in client.get_registered_model(remote.tracking.model).aliases.items()}
    assert aliases["champion"] == "2"
    entries = history(remote, remote.tracking.model)
    counting = [(entry.before, entry.version) for entry in entries if entry.counts]
    assert counting in ([(None, "1"), ("1", "2")], [(None, "1"), ("1", "3"), ("3", "2")])
    assert [entry.action for entry in entries].count("overtaken") == 1
    if said[1][0] == "refused":
        assert any("over champion (version 2)" in line for line in said[1])
        assert aliases["previous"] == "1"
    else:
        assert aliases["previous"] == "3"


def test_a_champion_loads_by_pyfunc_and_restores_and_is_traced(
    remote: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_store(tmp_path / "out", [5.0, 4.0, None], uri="s3://bucket/photos/{}")
    student = save_student(tmp_path / "out" / "student.safetensors", 3, 0.5)
    remote.student.tile = 16
    with start_run(remote, resolved(remote)) as recorder:
        version = register(remote, recorder, student, figures(0.5))
        assert promote(remote, recorder, version, figures(0.5)).promoted
    reference = f"models:/{remote.tracking.model}@champion"
    image = np.random.default_rng(0).integers(0, 256, (2, 24, 20, 3), np.uint8)
    np.save(tmp_path / "image.npy", image)
    # As a user of MLflow does it, in a process that has never heard of this package.
    code = (
        "import sys, numpy as np, mlflow\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "np.save(sys.argv[3], model.predict(np.load(sys.argv[2])))\n"
        "print(model.metadata.signature.inputs, len(model.input_example))\n"
    )
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": str(remote.tracking.uri),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    words = [sys.executable, "-c", code, reference, str(tmp_path / "image.npy"), str(tmp_path / "done.npy")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    restored = np.load(tmp_path / "done.npy")
    assert (restored.shape, restored.dtype) == (image.shape, np.uint8)

    # The verb takes the same checkpoint, and makes the same pixels of the same photo.
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encode_png(image[0]))
    words = ["restore", "-m", reference, "-i", str(tmp_path / "in"), "-o", str(tmp_path / "restored")]
    assert main([*words, f"tracking.uri={remote.tracking.uri}"]) == 0
    import cv2

    written = cv2.imread(str(tmp_path / "restored" / "a.png"))[..., ::-1]
    assert np.array_equal(written, restored[0])
    [cached] = (tmp_path / "cache").rglob("student.safetensors")
    assert cached.read_bytes() == Path(student).read_bytes()

    capsys.readouterr()
    assert main(["trace", reference, "--json", f"tracking.uri={remote.tracking.uri}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(recorder, MlflowRecorder)
    assert found["run"]["id"] == recorder.run_id
    assert found["version"]["aliases"] == ["challenger", "champion"]
    assert found["store"]["out"] == remote.out
    assert found["settings"]["student"]["tile"] == 16
    assert [(row["id"], row["uri"], row["accepted"]) for row in found["pairs"]] == [
        ("00.png", "s3://bucket/photos/0", True),
        ("01.png", "s3://bucket/photos/1", False),
        ("02.png", "s3://bucket/photos/2", False),
    ]
    assert found["promotions"][0]["action"] == "promoted"


def test_a_server_that_is_stopped_in_the_middle_of_a_run_gets_everything_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real server on a database of its own, stopped and started again at the same address."""
    port = running.free_port()
    monkeypatch.setattr(running, "free_port", lambda: port)
    cfg = Config(out=str(tmp_path / "out"))
    database, artifacts = f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts")
    with running_mlflow(tmp_path / "one.log", database, artifacts, {}) as server:
        cfg.tracking.uri = server.url
        opened = start_run(cfg, resolved(cfg))
        recorder = opened.__enter__()
        with recorder.stage("generate") as stage:
            stage.metrics({"done": 1.0})
    assert isinstance(recorder, MlflowRecorder)
    for step in range(200):
        recorder.metrics({"loss": 1.0 / (step + 1)}, step=step)
    report = tmp_path / "out" / "report.html"
    report.write_text("a page")
    recorder.artifact(str(report))
    with recorder.stage("evaluate") as stage:
        stage.metrics({"psnr": 30.0})
    opened.__exit__(None, None, None)
    assert "did not come back; kept in" in recorder.unsent
    assert "metrics loss (x200)" in recorder.unsent
    with running_mlflow(tmp_path / "two.log", database, artifacts, {}) as server:
        assert main(["sync", cfg.out, f"tracking.uri={server.url}"]) == 0
        client = MlflowClient(server.url)
        found = client.get_run(recorder.run_id)
        assert [point.step for point in client.get_metric_history(recorder.run_id, "loss")] == list(range(200))
        assert found.data.metrics["evaluate.psnr"] == 30.0
        assert found.info.status == "FINISHED"
        assert "report.html" in [item.path for item in client.list_artifacts(recorder.run_id)]
        # The same directory goes on with the same run.
        with start_run(cfg, resolved(cfg)) as again:
            assert isinstance(again, MlflowRecorder)
        assert again.run_id == recorder.run_id
        assert len(client.search_runs([found.info.experiment_id])) == 2

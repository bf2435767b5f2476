"""An MLflow server that is stopped before a student is registered, and is there again when `gmd-ray sync` is called."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from mlflow import MlflowClient

from gmd_ray import demo, storage
from gmd_ray.cli import main
from gmd_ray.config import Config
from gmd_ray.config.load import resolved, save_config
from gmd_ray.errors import ExitCode
from gmd_ray.images.files.encode import encode_png
from gmd_ray.images.noise import image_noise
from gmd_ray.tracking import TrackingError, keep_registration, register, start_run
from gmd_ray.tracking.runs import run_id_of
from tests.servers.running import MlflowServer, S3Server, free_port, running_mlflow
from tests.tracking.measures import figures

pytestmark = pytest.mark.slow

STUDENT = Path(next(iter(demo.__path__)), "toy", "weights", "student.safetensors")
ON_RAY = """
import json, sys

from gmd_ray.cli import main
from gmd_ray.config import Config
from gmd_ray.ray_utils.session import ray_session

with ray_session(Config()):
    status = main(json.loads(sys.argv[1]))
sys.exit(status)
"""
"""Runs a command on a Ray session that was there before it."""


@pytest.fixture
def run(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A run in a bucket, evaluated, whose student is still to be registered."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    cfg = Config(out=f"{s3_server.make_bucket('away')}/run")
    cfg.student.path = str(STUDENT)
    cfg.tracking.experiment = cfg.tracking.model = "away"
    cfg.tracking.gates = []
    figures(0.5).save(cfg.out)
    storage.write_bytes(student_of(cfg), STUDENT.read_bytes())
    return cfg


def student_of(cfg: Config) -> str:
    return f"{cfg.out}/finetune/adapted/student.safetensors"


def test_sync_registers_what_a_stopped_server_could_not(
    own_ray: None, run: Config, s3_server: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = f"sqlite:///{tmp_path}/mlflow.db"
    artifacts = f"{s3_server.make_bucket('away-artifacts')}/artifacts"

    port = free_port()
    run.tracking.uri = f"http://127.0.0.1:{port}"
    save_config(run, f"{run.out}/config.yaml")

    def server() -> contextlib.AbstractContextManager[MlflowServer]:
        return running_mlflow(tmp_path / "mlflow.log", database, artifacts, s3_server.environment, port)

    def register_in_vain() -> None:
        with contextlib.ExitStack() as up:
            up.enter_context(server())
            with start_run(run, resolved(run)) as recorder:
                up.close()
                recorder.metrics({"gain": 0.5})
                keep_registration(run, student_of(run))  # as `adapt` does
                register(run, recorder, student_of(run), figures(0.5))

    with pytest.raises(TrackingError, match="failed while registering away"):
        register_in_vain()
    assert main(["sync", run.out]) == ExitCode.FAILED, "it is still away"
    assert storage.is_file(f"{run.out}/unregistered.json")

    with server():
        capsys.readouterr()
        assert main(["sync", run.out]) == 0
        told = capsys.readouterr().out
        assert "version 1 is registered, and champion now" in told
        assert not storage.is_file(f"{run.out}/unregistered.json")
        client = MlflowClient(run.tracking.uri, run.tracking.uri)
        aliases = client.get_registered_model("away").aliases
        assert {name: str(number) for name, number in aliases.items()} == {"challenger": "1", "champion": "1"}
        found = client.get_run(str(run_id_of(run.out)))
        assert (found.data.metrics, found.info.status) == ({"gain": 0.5}, "FAILED")
        assert main(["sync", run.out]) == 0
        assert "MLflow has missed nothing" in capsys.readouterr().out

        restored_on_ray(run, tmp_path)


def restored_on_ray(run: Config, folder: Path) -> None:
    """Restore photos of the bucket with the champion on Ray, and hold the results against those of the file itself."""
    photos, names = f"{run.out}/photos", ["a.png", "b/c.png"]
    for name in names:
        pixels = image_noise(name, (40, 48, 3)).mul(0.2).add(0.5).clamp(0, 1).numpy()
        storage.write_bytes(f"{photos}/{name}", encode_png(pixels))
    words = ["restore", "-i", photos, "student.device=cpu"]
    assert main([*words, "-o", f"{run.out}/expected", "-m", str(STUDENT)]) == 0
    champion = ["-o", f"{run.out}/restored", "-m", "models:/away@champion", f"tracking.uri={run.tracking.uri}"]
    with tempfile.TemporaryDirectory(prefix="gmd-", dir="/tmp") as temporary:  # Ray's sockets have short paths
        environment = {**os.environ, "RAY_TMPDIR": temporary, "XDG_CACHE_HOME": str(folder / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", ON_RAY, json.dumps([*words, *champion, "ray.address=auto"])],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 of 2 images restored" in done.stdout
    for name in names:
        restored = storage.read_bytes(f"{run.out}/restored/{name}")
        assert restored is not None
        assert restored == storage.read_bytes(f"{run.out}/expected/{name}")
        assert restored != storage.read_bytes(f"{photos}/{name}")

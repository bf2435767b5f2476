"""The lab machine without Docker: its Ray commands as processes, its MLflow on PostgreSQL and S3, and a run on it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.tools import KUBERAY, load
from tests.servers.running import MlflowServer, S3Server, free_port

pytestmark = pytest.mark.slow

TOKEN = "0123456789abcdef" * 3
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
SERVICES = load("docker-compose.yaml")["services"]


def command(service: str, port: int, place: str) -> list[str]:
    """The command of a service on a machine where other Rays run: other ports, its own folder, no GPU needed."""
    text = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", SERVICES[service]["command"])
    program, *words = shlex.split(text.replace("head:6379", f"127.0.0.1:{port}").replace("=6379", f"={port}"))
    assert program == "ray"
    words = [f"--metrics-export-port={free_port()}" if "metrics-export" in word else word for word in words]
    words = [word for word in words if "dashboard-host" not in word]
    if service == "head":
        words += ["--include-dashboard=false", f"--temp-dir={place}", "--node-ip-address=127.0.0.1"]
    else:
        words += [f"--num-gpus={int(service == 'worker-gpu')}", "--object-store-memory=100000000"]
    return [*RAY, *words]


@pytest.fixture
def address() -> Iterator[str]:
    """The address of a cluster of head, CPU worker and GPU worker, with tokens."""
    place = tempfile.mkdtemp(prefix="gmd-", dir="/tmp")  # short: Ray's sockets live below it
    port = free_port()
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    started = []
    try:
        with Path(place, "log").open("wb") as log:
            for service in ("head", "worker-cpu", "worker-gpu"):
                started.append(
                    subprocess.Popen(
                        command(service, port, place),
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
                if service == "head":
                    wait_for(f"127.0.0.1:{port}", started[0], Path(place, "log"), environment)
        yield f"127.0.0.1:{port}"
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(place, ignore_errors=True)


def wait_for(address: str, head: subprocess.Popen[bytes], log: Path, environment: dict[str, str]) -> None:
    """Wait as the health check of the compose file does."""
    assert SERVICES["head"]["healthcheck"]["test"][1:4] == ["ray", "health-check", "--address"]
    for _ in range(60):
        assert head.poll() is None, log.read_text(encoding="utf-8")[-2000:]
        check = [*RAY, "health-check", "--address", address]
        if subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 0:
            return
        time.sleep(1)
    raise AssertionError(f"no head within a minute: {log.read_text(encoding='utf-8')[-2000:]}")


def test_a_run_finds_its_pools_by_their_labels_and_is_tracked(
    address: str, mlflow_server: MlflowServer, s3_server: S3Server, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    words = ["preset=toy", f"config={KUBERAY / 'small' / 'settings.yaml'}", f"out={tmp_path / 'run'}"]
    words += [f"ray.address={address}", "target.limit=6", "tracking.experiment=lab"]
    given = {"RAY_AUTH_TOKEN": TOKEN, "MLFLOW_TRACKING_URI": mlflow_server.url}
    done = subprocess.run(
        [sys.executable, "-m", "gmd_ray.cli", "generate", *words],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    client = MlflowClient(mlflow_server.url)
    runs = client.search_runs([client.get_experiment_by_name("lab").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert any(run.info.run_id in key for run in runs for key in s3_server.keys("mlflow"))

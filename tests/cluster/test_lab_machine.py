"""The Ray commands of the lab machine, as processes without Docker: its nodes find each other, and run a small job."""

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
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gmd_ray.demo.toy.prepare import WorldSize, prepare
from gmd_ray.pairstore.store import find_store
from tests import PATIENCE_S
from tests.cluster.tools import KUBERAY, ROOT, load
from tests.ray_utils.sockets import family
from tests.servers.heads import TOKEN, free_ports

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_ray")]

SERVICES = load("docker-compose.yaml")["services"]
NODES = ("head", "worker-cpu", "worker-gpu")
FILLED_IN = {"RAY_AUTH_TOKEN": TOKEN, "S3_PASSWORD": "secret", "GMD_SHARED": "/shared", "CPU_WORKER_CPUS": "2"}
"""Lines of `.env`."""
PORTS = (
    "node-manager", "object-manager", "metrics-export", "dashboard-agent-listen", "dashboard-agent-grpc",
    "runtime-env-agent",
)  # fmt: skip
UP_S, JOB_S = PATIENCE_S, 2 * PATIENCE_S
RESTARTS = 4
"""Restarts of workers that are no fault of the file's on a busy machine."""


def substituted(text: str) -> str:
    """A value of the file as compose reads it: `${NAME:-default}` and `${NAME:?message}` are looked up in `.env`."""
    return re.sub(r"\$\{(\w+)(?::[-?]([^}]*))?\}", lambda found: FILLED_IN.get(found[1], found[2] or ""), text)


def arguments(service: str, port: int, folder: Path) -> list[str]:
    """The command of a service, with what containers give each node for itself: address, ports, a temporary folder."""
    text = substituted(SERVICES[service]["command"])
    program, *words = shlex.split(
        text.replace("head:6379", f"127.0.0.1:{port}").replace("--port=6379", f"--port={port}")
    )
    assert program == "ray"
    own = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    words = [word for word in words if not word.startswith(("--metrics-export-port", "--dashboard-host"))]
    words += [f"--{name}-port={number}" for name, number in own.items()]
    words += ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000", "--disable-usage-stats"]
    words.append(f"--temp-dir={folder / service}")  # as containers have; nodes that share one race for names
    if service == "head":
        dashboard, client = free_ports(2)
        words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    else:
        devices = SERVICES[service].get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        words += [f"--num-gpus={sum(device['count'] for device in devices)}"]
    return [str(Path(sys.executable).parent / program), *words]


def environment(service: str, home: Path) -> dict[str, str]:
    given = {name: substituted(str(value)) for name, value in SERVICES[service]["environment"].items()}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "MLFLOW_"))}
    here = {"HOME": str(home), "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    return {**inherited, **given, **here}


@dataclass
class LabMachine:
    port: int
    env: dict[str, str]
    folder: Path
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """Service -> its process."""
    restarts: int = 0
    ended: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """Processes that were replaced."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, service: str) -> None:
        with (self.folder / f"{service}.log").open("ab") as log:
            self.started[service] = subprocess.Popen(
                arguments(service, self.port, self.folder),
                env=environment(service, self.folder),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def restart_ended(self) -> None:
        """Start a worker that has ended once more, as `restart: unless-stopped` does: Ray gives a raylet 30 s."""
        for service, process in list(self.started.items()):
            if process.poll() is not None:
                assert service != "head", self.log()
                assert self.restarts < RESTARTS, self.log()
                self.restarts += 1
                self.ended.append(process)
                self.start(service)

    def python(self, *words: str, seconds: float = JOB_S) -> str:
        """Run Python as in the container of the head; returns what it prints."""
        done = subprocess.run(
            [sys.executable, *words], env=self.env, capture_output=True, text=True, timeout=seconds, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + self.log()
        return done.stdout

    def log(self) -> str:
        return "".join(file.read_text(errors="replace")[-1500:] for file in sorted(self.folder.glob("*.log")))


def wait_for(check: list[str], lab: LabMachine, env: Mapping[str, str], *wanted: str) -> None:
    """Wait until a command succeeds, and prints these texts."""
    until = time.monotonic() + UP_S
    while True:
        lab.restart_ended()
        done = subprocess.run(check, env=env, capture_output=True, text=True, check=False)
        if done.returncode == 0 and all(text in done.stdout for text in wanted):
            return
        assert time.monotonic() < until, done.stdout + done.stderr + lab.log()
        time.sleep(1)


LIST = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(json.dumps([[n["Labels"].get("pool"), n["Resources"].get("CPU", 0), n["Resources"].get("GPU", 0)]
                  for n in ray.nodes() if n["Alive"]]))
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[LabMachine]:
    folder = Path(tempfile.mkdtemp(prefix="gmd-", dir="/tmp"))  # short: Ray's sockets lie below it
    [port] = free_ports(1)
    found = LabMachine(port, environment("head", folder), folder)
    try:
        for service in NODES:
            found.start(service)
            if service == "head":
                _, program, *words = SERVICES["head"]["healthcheck"]["test"]
                words = [word.replace("127.0.0.1:6379", found.address) for word in words]
                wait_for([str(Path(sys.executable).parent / program), *words], found, environment(service, folder))
        file = folder / "list.py"
        file.write_text(LIST)
        wait_for([sys.executable, str(file), found.address], found, found.env, '"gpu"', '"cpu"')
        yield found
    finally:
        processes = [*found.started.values(), *found.ended]
        members = set().union(*(family(process.pid) for process in processes))
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
        for member in members:
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        for process in processes:
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_all_three_nodes_join_with_label_cpus_and_gpu(lab: LabMachine) -> None:
    told = lab.python(str(lab.folder / "list.py"), lab.address)
    for node in ('["head", 0, 0]', '["cpu", 2.0, 0]', '["gpu", 16.0, 1.0]'):
        assert node in told, told + lab.log()


def test_a_run_with_the_mounted_settings_finds_its_pools(lab: LabMachine) -> None:
    [mounted] = {mount.split(":")[0] for mount in SERVICES["head"]["volumes"] if mount.endswith("settings.yaml:ro")}
    settings = KUBERAY.parent / mounted
    size = WorldSize(seed=7, target=4, severe=1, source=2, target_test=1, source_test=1)
    prepare(lab.folder / "world", size)
    out = lab.folder / "run"
    lab.python(
        "-m", "gmd_ray.cli", "generate", "preset=toy", f"config={settings}", "prepare=null", f"out={out}",
        f"ray.address={lab.address}", "tracking.enabled=false", f"target.path={lab.folder / 'world' / 'target_lq'}",
        "source.hq=null", "source.lq=null", "evaluation.target_lq=null", "evaluation.target_hq=null",
        "evaluation.source_hq=null", "evaluation.source_lq=null", "evaluation.pairs_hq=null", "teacher.steps=1",
        "teacher.injection.steps=1",
    )  # fmt: skip
    manifest = find_store(str(out)).read("manifest.json")
    assert manifest is not None
    assert (manifest["inputs"], manifest["failed"]) == (4, 0)

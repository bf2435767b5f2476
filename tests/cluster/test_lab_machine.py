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
from dataclasses import dataclass
from pathlib import Path

import pytest

from gmd_ray.demo.toy.prepare import WorldSize, prepare
from gmd_ray.pairstore.store import find_store
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
UP_S, JOB_S = 180, 300


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
    address: str
    env: dict[str, str]
    started: list[subprocess.Popen[bytes]]
    folder: Path

    def python(self, *words: str, seconds: float = JOB_S) -> str:
        """Run Python as in the container of the head; returns what it prints."""
        done = subprocess.run(
            [sys.executable, *words], env=self.env, capture_output=True, text=True, timeout=seconds, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + self.log()
        return done.stdout

    def log(self) -> str:
        return "".join(file.read_text(errors="replace")[-1500:] for file in sorted(self.folder.glob("*.log")))


def wait_for(check: list[str], lab: LabMachine, env: Mapping[str, str], wanted: str = "") -> None:
    """Wait until a command succeeds, and prints a text."""
    until = time.monotonic() + UP_S
    while True:
        assert all(process.poll() is None for process in lab.started), lab.log()
        done = subprocess.run(check, env=env, capture_output=True, text=True, check=False)
        if done.returncode == 0 and wanted in done.stdout:
            return
        assert time.monotonic() < until, done.stdout + done.stderr + lab.log()
        time.sleep(1)


@pytest.fixture(scope="module")
def lab() -> Iterator[LabMachine]:
    folder = Path(tempfile.mkdtemp(prefix="gmd-", dir="/tmp"))  # short: Ray's sockets lie below it
    [port] = free_ports(1)
    found = LabMachine(f"127.0.0.1:{port}", environment("head", folder), [], folder)
    try:
        for service in NODES:
            env = environment(service, folder)
            with (folder / f"{service}.log").open("wb") as log:
                command = arguments(service, port, folder)
                process = subprocess.Popen(
                    command, env=env, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )  # fmt: skip
            found.started.append(process)
            if service == "head":
                _, program, *words = SERVICES["head"]["healthcheck"]["test"]
                words = [word.replace("127.0.0.1:6379", found.address) for word in words]
                wait_for([str(Path(sys.executable).parent / program), *words], found, env)
        yield found
    finally:
        members = set().union(*(family(process.pid) for process in found.started))
        for process in reversed(found.started):
            process.terminate()
        for process in found.started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
        for member in members:
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        for process in found.started:
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


LIST = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(json.dumps([[n["Labels"].get("pool"), n["Resources"].get("CPU", 0), n["Resources"].get("GPU", 0)]
                  for n in ray.nodes() if n["Alive"]]))
"""


def test_all_three_nodes_join_with_label_cpus_and_gpu(lab: LabMachine) -> None:
    file = lab.folder / "list.py"
    file.write_text(LIST)
    wait_for([sys.executable, str(file), lab.address], lab, lab.env, '"gpu"')
    told = lab.python(str(file), lab.address)
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

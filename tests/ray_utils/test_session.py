"""The private Ray session, in a process of its own: this one has another."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from gmd_ray.config import Config
from gmd_ray.errors import GmdError
from gmd_ray.ray_utils.session import ray_session
from tests import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]

SESSION = """
import logging
import os
import sys
import ray
from gmd_ray.config import Config
from gmd_ray.ray_utils.capacity import check_capacity
from gmd_ray.ray_utils.session import ray_session
from tests.ray_utils.sockets import LOOPBACK, listening

class Told(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())

lines = []
logging.getLogger("gmd_ray").setLevel(logging.INFO)
logging.getLogger("gmd_ray").addHandler(Told())
os.cpu_count = lambda: 1

@ray.remote(max_restarts=-1)
class Worker:
    def __init__(self, big):
        pass

    def pid(self):
        return os.getpid()

cfg = Config()
cfg.ray.num_cpus, cfg.ray.object_store_memory = int(sys.argv[1]) or None, 80_000_000
with ray_session(cfg):
    print("CPUs", ray.cluster_resources()["CPU"], any("shared" in line for line in lines))
    try:
        check_capacity(cfg)
        print("1 CPUs shared by pools that want 4; ray.num_cpus says otherwise" in lines)
    except ValueError as error:
        print(error)
    worker = Worker.remote(ray.put(bytes(1_000_000)))  # of which Ray's core would warn on the terminal
    ray.get(worker.pid.remote())
    found = list(listening(os.getpid()))
    print(len({name for name, _, _ in found}), [place for place in found if place[1] not in LOOPBACK])
assert not ray.is_initialized()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "num_cpus", "cpus", "capacity"),
    [
        (None, 0, "CPUs 4.0 False", "True"),  # three pools of one, reading and writing
        ("disabled", 2, "CPUs 2.0 False", "the smallest pools need 3.4"),  # what was asked for
    ],
)
def test_a_private_session_has_the_cpus_that_pools_need_and_listens_on_loopback_alone(
    mode: str | None, num_cpus: int, cpus: str, capacity: str
) -> None:
    """On a machine of one CPU. That CPUs are shared is said where pools are at work, not as the session starts."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_AUTH_MODE"}
    if mode is not None:
        environment["RAY_AUTH_MODE"] = mode
    code = [sys.executable, "-c", SESSION, str(num_cpus)]
    done = subprocess.run(code, capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second, last = done.stdout.splitlines()
    assert first == cpus
    assert capacity in second
    processes, beyond = last.split(" ", 1)
    assert int(processes) >= 5, "driver, gcs_server, raylet, agents and worker"
    assert beyond == "[]"


def importing(folder: Path) -> str:
    """A command that starts Ray and asks for nothing that is not there."""
    table = folder / "table"
    table.mkdir()
    pq.write_table(pa.table({"image": [b"x"]}), table / "a.parquet")
    words = ["import", "--from", f"parquet:{table}", "-o", str(folder / "out"), "--hq", "image"]
    return f"from gmd_ray.cli import main; raise SystemExit(main({words!r}))"


def test_a_tmpdir_too_long_for_sockets_is_one_line(tmp_path: Path) -> None:
    long = tmp_path / ("n" * (90 - len(str(tmp_path))))
    long.mkdir()
    environment = {**os.environ, "TMPDIR": str(long)}
    environment.pop("RAY_TMPDIR", None)
    code = importing(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT, env=environment
    )
    assert done.returncode == 1
    assert f"TMPDIR={long} is " in done.stderr.splitlines()[-1]
    assert "RAY_TMPDIR=/tmp" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_tmpdir_that_is_no_folder_is_one_line(tmp_path: Path) -> None:
    code = importing(tmp_path)
    with tempfile.NamedTemporaryFile(dir="/tmp") as file:  # pytest's own folders have names too long for sockets
        environment = {**os.environ, "RAY_TMPDIR": file.name}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT, env=environment
        )
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("gmd-ray: Ray cannot start: ")
        assert f"{file.name} (TMPDIR, RAY_TMPDIR)" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


def test_a_cluster_of_another_version_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.9.1\n")

    monkeypatch.setattr("gmd_ray.ray_utils.joining.door", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    cfg = Config()
    cfg.ray.address = "head:6379"
    with pytest.raises(GmdError) as caught, ray_session(cfg):
        pytest.fail("it joined")
    assert str(caught.value) == (
        "ray.address=head:6379: cannot join this cluster (Version mismatch: The cluster was started with: Ray: 2.9.0 "
        "Python: 3.9.1)"
    )

"""Everything that tests share: the environment, the shared files and one small Ray session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Read once, at import, by the libraries they steer: they must stand before any other import.
os.environ.update(
    {
        # 2 cores, several Ray workers: more threads than one each only thrash.
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "NUMEXPR_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # No test may reach the network.
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Ray's defaults suit a cluster: 4 footer readers per Parquet scan, a health check every 2 s.
        "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
        "RAY_TRAIN_V2_ENABLED": "1",
        # For the processes that the tests start: sitecustomize.py in the first folder, this checkout in the second.
        "PYTHONPATH": ":".join(filter(None, [f"{ROOT}/tests/startup", str(ROOT), os.environ.get("PYTHONPATH")])),
    }
)
# Some images of containers set it, and each of those processes would then compile the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import gc
import logging
import re
import shutil
import signal
import tempfile
from functools import cache

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from gmd_ray.config import secrets
from tests.servers.running import MlflowServer, S3Server, running_mlflow, running_postgres, running_s3

# An exit hook that logs would find pytest's captured stream closed, and its complaint would follow the summary line.
logging.raiseExceptions = False

# A shell that runs the tests in the background lets them ignore Ctrl-C, and the processes that they start would too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

RAY_FIXTURE = re.compile(r"(?<![.\w])(ray_session|fresh_on_ray|own_ray)(: |\")")
"""An argument or a mark of a test by which it gets a fixture that needs Ray."""
SERVER_FIXTURE = re.compile(r"\w: (MlflowServer|S3Server|Registry)\b|(?<![.\w])postgres: ")
"""An argument of a test that needs a server of the test session."""


def _shared() -> Path:
    return Path(os.environ.get("GMD_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photographs, weights and published values; not part of the repository, so not everywhere."""
    path = _shared() / "data"
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}; set GMD_SHARED to the folder that holds it")
    return path


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """Vectors of an independent implementation; not part of the repository, so not everywhere."""
    path = _shared() / "golden"
    if not path.is_dir():
        pytest.skip(f"no golden vectors at {path}; set GMD_SHARED to the folder that holds it")
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put first what takes longest, so that no process is left alone with it at the end."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    rank = {}
    for path, tests in files.items():
        slow = any(test.get_closest_marker("slow") for test in tests)
        rank[path] = 0 if any(_needs_ray(test) for test in tests) else 1 if slow else 2
        if rank[path] == 0 and not uses_ray(path):
            raise pytest.UsageError(f"{path}: its tests use the Ray session, but not by a fixture of RAY_FIXTURE")
    items.sort(key=lambda item: rank[item.path])


def pytest_collection_finish() -> None:
    """Leave modules and tests out of all later garbage collections, of which each would walk a million objects."""
    gc.collect()
    gc.freeze()


def _needs_ray(test: pytest.Item) -> bool:
    return "ray_session" in getattr(test, "fixturenames", ())


@cache
def uses_ray(path: Path) -> bool:
    """Tell whether a test file names a fixture that needs the Ray session."""
    return RAY_FIXTURE.search(path.read_text(encoding="utf-8")) is not None


class OneRaySession(LoadFileScheduling):
    """Sends the tests of a file to one process, every file that uses Ray to the same one, and those with servers too.

    Two processes with a Ray session each would fight for two cores.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if uses_ray(ROOT / file):
            return "ray"
        return "servers" if SERVER_FIXTURE.search((ROOT / file).read_text(encoding="utf-8")) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneRaySession:
    return OneRaySession(config, log)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the Ray session after the last file that uses it: its processes take CPU time as long as they live."""
    if nextitem is not None and uses_ray(item.path) and not uses_ray(nextitem.path):
        import ray

        ray.shutdown()


@pytest.fixture(autouse=True)
def no_secrets() -> Iterator[None]:
    """Forget the secrets of one test's settings before the next test."""
    yield
    secrets.forget()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One private local Ray for the whole test session; starting one takes 7 to 12 s."""
    import ray

    # Ray's unix sockets live below it, and their paths may have 107 bytes at most: not pytest's tmp_path.
    temp_dir = tempfile.mkdtemp(prefix="gmd-", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        object_store_memory=200_000_000,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=temp_dir,
        # Ray ends idle workers after a second, and the next run would start others.
        _system_config={"idle_worker_killing_time_threshold_ms": 60_000},
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)


@pytest.fixture
def own_ray() -> None:
    """Mark a test that starts a Ray of its own, so that it runs in the process of all tests with Ray."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """SQLAlchemy's URI of a PostgreSQL server."""
    with running_postgres() as uri:
        yield uri


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server; a test makes a bucket of its own in it."""
    with running_s3(tmp_path_factory.mktemp("s3") / "s3.log") as server:
        yield server


@pytest.fixture(scope="session")
def mlflow_server(
    tmp_path_factory: pytest.TempPathFactory, postgres: str, s3_server: S3Server
) -> Iterator[MlflowServer]:
    """An MLflow server on PostgreSQL with its artifacts on S3; it starts in half a minute, so mark its tests slow."""
    artifacts = f"{s3_server.make_bucket('mlflow')}/artifacts"
    log = tmp_path_factory.mktemp("mlflow") / "mlflow.log"
    with running_mlflow(log, postgres, artifacts, s3_server.environment) as server:
        yield server

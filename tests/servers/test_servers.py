"""The servers of the tests: what is written comes back over HTTP, and lies in PostgreSQL and on S3."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray import storage
from tests.servers.running import MlflowServer, S3Server

pytestmark = pytest.mark.slow


def test_a_run_and_its_artifact_come_back_from_the_server(
    mlflow_server: MlflowServer, postgres: str, s3_server: S3Server, tmp_path: Path
) -> None:
    from mlflow import MlflowClient
    from sqlalchemy import create_engine, text

    client = MlflowClient(mlflow_server.url)
    run = client.create_run(client.create_experiment("servers")).info.run_id
    client.log_param(run, "student", "dncnn")
    client.log_metric(run, "psnr", 31.25, step=3)
    (tmp_path / "card.md").write_text("a student", encoding="utf-8")
    client.log_artifact(run, str(tmp_path / "card.md"), "student")

    found = MlflowClient(mlflow_server.url).get_run(run)
    assert found.data.params == {"student": "dncnn"}
    assert [(point.step, point.value) for point in client.get_metric_history(run, "psnr")] == [(3, 31.25)]
    fetched = client.download_artifacts(run, "student/card.md", str(tmp_path))
    assert Path(fetched).read_text(encoding="utf-8") == "a student"

    with create_engine(postgres).connect() as database:
        rows = database.execute(text("select value from params where run_uuid = :run"), {"run": run}).all()
    assert [value for (value,) in rows] == ["dncnn"]
    assert [key for key in s3_server.keys("mlflow") if run in key and key.endswith("/student/card.md")]


def test_the_files_of_a_run_come_back_from_s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint in the environment, as the manifests of `cluster/` give it, serves a plain `s3://bucket/...`."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = s3_server.make_bucket("runs")
    filesystem, path = storage.open_filesystem(f"{bucket}/run/part-0.parquet")
    storage.put(filesystem, path, b"pairs")
    with filesystem.open_input_stream(path) as file:
        assert file.read() == b"pairs"
    assert s3_server.keys("runs") == ["run/part-0.parquet"]

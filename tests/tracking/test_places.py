"""Run directories with names that mean something in a URL: the database and the files lie in them and nowhere else."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gmd_ray.config import Config
from gmd_ray.config.load import load_config, resolved
from gmd_ray.tracking import MlflowRecorder, TrackingError, start_run
from gmd_ray.tracking.client import artifact_location, default_uri, tracking_uri

REFUSED = r"^MLflow at sqlite:.* failed while starting the run: [^\n]*$"
NAMES = ["run?1", "a%20b", "a%b", "exp #1", "a;b", "Grüße 写真", "a&b=c+d@e:f", "w\\x", "[1]", "a'b\"c", "a\nb", " "]


@pytest.mark.parametrize("name", [NAMES[0], NAMES[1], "exp #1; Grüße [1]"])  # each makes the tables anew, for seconds
def test_a_run_lies_below_its_directory(name: str, tmp_path: Path) -> None:
    cfg = load_config([f"out={tmp_path / name}"])
    with start_run(cfg, resolved(cfg)) as recorder:
        assert isinstance(recorder, MlflowRecorder)
        recorder.text("hello", "note.txt")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    out = tmp_path / name
    assert {path.name for path in out.iterdir()} == {"mlflow.db", "mlartifacts", "mlflow_run.json"}
    assert [path.read_text() for path in out.glob("mlartifacts/*/artifacts/note.txt")] == ["hello"]
    with sqlite3.connect(out / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (1,)
    again = MlflowClient(recorder.uri, recorder.uri)
    assert again.get_run(recorder.run_id).data.params["out"] == str(out)
    assert Path(again.download_artifacts(recorder.run_id, "note.txt")).read_text() == "hello"


def test_a_run_directory_that_was_moved_is_told_where_its_files_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("old", "new"):
        cfg = load_config([f"out={tmp_path / name}"])
        with caplog.at_level("WARNING", logger="gmd_ray"), start_run(cfg, resolved(cfg)):
            pass
        if name == "old":
            assert caplog.messages == []
            (tmp_path / "old").rename(tmp_path / "new")
    [told] = caplog.messages
    assert f"MLflow's files go on to {(tmp_path / 'old' / 'mlartifacts').as_uri()}" in told


@pytest.mark.parametrize("name", NAMES)
def test_an_address_names_the_file_in_the_directory(name: str, tmp_path: Path) -> None:
    from sqlalchemy.engine import make_url

    out = tmp_path / name / "run"
    uri = default_uri(str(out))
    assert make_url(uri).database == str(out / "mlflow.db")
    assert artifact_location(uri, str(out)) == (out / "mlartifacts").as_uri()
    assert default_uri(f"file://{tmp_path}/a%20b") == f"sqlite:///{tmp_path}/a b/mlflow.db"


@pytest.mark.parametrize("name", NAMES)
def test_a_relative_address_is_anchored_in_a_directory_of_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.engine import make_url

    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    url = make_url(load_config(["tracking.uri=sqlite:///m%20l.db?timeout=3"]).tracking.uri or "")
    assert (url.database, dict(url.query)) == (str(tmp_path / name / "m l.db"), {"timeout": "3"})


def test_a_database_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    cfg = Config(out=str(tmp_path))
    with pytest.raises(TrackingError, match=REFUSED), start_run(cfg, {}):
        raise AssertionError("no run began")


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database at all" * 100)
    cfg = Config(out=str(tmp_path))
    with pytest.raises(TrackingError, match=REFUSED), start_run(cfg, {}):
        raise AssertionError("no run began")


def test_the_environment_names_the_server_where_the_settings_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = Config(out="/runs/a")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(cfg) == "sqlite:////runs/a/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri(cfg) == "http://mlflow:5000"
    cfg.tracking.uri = "http://other:5000"
    assert tracking_uri(cfg) == "http://other:5000"

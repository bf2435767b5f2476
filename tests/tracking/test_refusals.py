"""A command that is refused leaves no trace in MLflow; one that fails does."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gmd_ray.config import Config
from gmd_ray.config.load import resolved
from gmd_ray.errors import ConfigError, DataError, GmdError, ModelError, ResumeMismatchError
from gmd_ray.tracking import start_run


def kept(client: MlflowClient, run_id: str) -> dict[str, object]:
    """All that a refused command could have changed of a run."""
    found = client.get_run(run_id)
    folder = [item.path for item in client.list_artifacts(run_id)]
    text = client.download_artifacts(run_id, "config.json") if "config.json" in folder else None
    return {
        "info": (found.info.status, found.info.end_time, found.info.lifecycle_stage),
        "data": found.data.to_dictionary(),
        "config": text and Path(text).read_text(),
        "files": folder,
    }


def runs_of(client: MlflowClient, cfg: Config) -> set[str]:
    experiment = client.get_experiment_by_name(cfg.tracking.experiment)
    assert experiment is not None
    return {found.info.run_id for found in client.search_runs([experiment.experiment_id])}


def adapted(cfg: Config, refusal: Exception | None = None, at: str = "generate") -> None:
    """Two stages that note something; one of them may raise before it does."""
    with start_run(cfg, resolved(cfg)) as parent:
        for name in ("generate", "train"):
            with parent.stage(name) as stage:
                if refusal is not None and name == at:
                    raise refusal
                stage.params({"steps": cfg.teacher.steps})
                stage.metrics({"done": 1.0})


@pytest.mark.parametrize(
    ("refusal", "at"),
    [
        (ResumeMismatchError("other steps"), "generate"),
        (ConfigError("no such thing"), "generate"),
        (DataError("no images"), "generate"),
        (GmdError("another driver is at work"), "generate"),
    ],
)
def test_a_refused_command_leaves_a_finished_run_as_it_was(
    refusal: Exception, at: str, run: Config, client: MlflowClient
) -> None:
    adapted(run)
    before = {run_id: kept(client, run_id) for run_id in runs_of(client, run)}
    assert len(before) == 3
    run.teacher.steps += 1
    with pytest.raises(type(refusal)):
        adapted(run, refusal, at)
    assert {run_id: kept(client, run_id) for run_id in runs_of(client, run)} == before


def test_a_later_stage_that_refuses_leaves_the_parent_as_it_was(run: Config, client: MlflowClient) -> None:
    adapted(run)
    before = {run_id: kept(client, run_id) for run_id in runs_of(client, run)}
    names = {run_id: client.get_run(run_id).info.run_name for run_id in before}
    run.training.steps += 1
    with pytest.raises(ResumeMismatchError):
        adapted(run, ResumeMismatchError("other steps"), "train")
    after = {run_id: kept(client, run_id) for run_id in runs_of(client, run)}
    assert {names[run_id] for run_id in before if after[run_id] != before[run_id]} == {"generate"}, "it ran again"
    assert {found["info"][0] for found in after.values()} == {"FINISHED"}  # type: ignore[index]


@pytest.mark.parametrize("refusal", [ResumeMismatchError("x"), ConfigError("x"), DataError("x")])
def test_a_refused_command_makes_no_run(
    refusal: Exception, run: Config, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(type(refusal)):
        adapted(run, refusal)
    assert runs_of(client, run) == set()
    adapted(run)
    assert len(runs_of(client, run)) == 3
    assert "is gone" not in caplog.text


def test_a_run_that_fails_says_so_whenever_it_does(run: Config, client: MlflowClient) -> None:
    """A failure is no refusal if it comes later, or from an error of another kind."""
    adapted(run)
    run.teacher.steps = 9
    with pytest.raises(RuntimeError):
        adapted(run, RuntimeError("a worker died"), "train")
    found = {client.get_run(run_id).info.run_name: client.get_run(run_id) for run_id in runs_of(client, run)}
    assert {name: item.info.status for name, item in found.items()} == {
        "out": "FAILED", "generate": "FINISHED", "train": "FAILED",
    }  # fmt: skip
    assert found["out"].data.tags["changed.teacher.steps"] == "9"
    with pytest.raises(ModelError):
        adapted(run, ModelError("cannot be loaded"), "train")
    assert client.get_run(found["out"].info.run_id).info.status == "FAILED"

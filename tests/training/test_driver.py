"""The settings that Ray Train gets before it starts, and the words for a user after it failed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ray.exceptions import RayActorError
from ray.train import PreemptionError, PreemptionInfo, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from gmd_ray.progress import NullRecorder
from gmd_ray.training.driver import run_config, train_environment, why_failed
from gmd_ray.training.spec import make_spec
from tests.training.toys import make_config

WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
START = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


@pytest.mark.parametrize(("nodes_change", "watcher"), [(False, "0"), (True, None)])
@pytest.mark.parametrize(("elastic", "start_s"), [(False, "600"), (True, "120")])
def test_variables_last_as_long_as_the_run(
    monkeypatch: pytest.MonkeyPatch, nodes_change: bool, watcher: str | None, elastic: bool, start_s: str
) -> None:
    monkeypatch.delenv(WATCHER, raising=False)
    monkeypatch.delenv(START, raising=False)
    before = dict(os.environ)
    with train_environment(elastic, nodes_change):
        assert (os.environ.get(WATCHER), os.environ[START]) == (watcher, start_s)
    assert dict(os.environ) == before


def test_variables_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WATCHER, "1")
    monkeypatch.setenv(START, "7")
    with train_environment(elastic=True, nodes_change=False):
        assert (os.environ[WATCHER], os.environ[START]) == ("1", "7")
    assert (os.environ[WATCHER], os.environ[START]) == ("1", "7")


def lost(preempted: bool) -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError("x", failure=RayActorError(preempted=preempted))


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (PreemptionError(PreemptionInfo(None, {"a": [1]})), "training.max_preemption_failures=2"),
        (WorkerGroupError("x", {0: OSError("collateral"), 1: lost(preempted=True)}), "max_preemption_failures=2"),
        (WorkerGroupError("x", {0: OSError("disk full"), 1: lost(preempted=False)}), "training.max_failures=1"),
    ],
)
def test_the_limit_that_ended_a_run_is_named(tmp_path: Path, error: TrainingFailedError, limit: str) -> None:
    spec = make_spec(make_config(tmp_path, max_failures=1, max_preemption_failures=2), "adapted", None)
    assert limit in why_failed(error, spec)
    told = run_config(spec, NullRecorder()).failure_config
    assert (told.max_failures, told.max_preemption_failures) == (1, 2)

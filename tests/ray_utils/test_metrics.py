"""The table of metrics, and what is recorded of a block; the values on a cluster are read in test_submit_on_ray.py."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from gmd_ray.ray_utils import metrics
from gmd_ray.ray_utils.metrics import MEASURES, ActorNames, model_name, record, record_rows, run_label
from tests import PATIENCE_S

Recorded = list[tuple[str, float, Mapping[str, str]]]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    found: Recorded = []
    monkeypatch.setattr(metrics, "record", lambda name, value, labels: found.append((name, value, dict(labels))))
    return found


def test_names_are_prometheus_names() -> None:
    for name, measure in MEASURES.items():
        assert re.fullmatch(r"gmd_[a-z_]+", name)
        assert measure.text.endswith((".", ")"))
        assert bool(measure.bounds) == (measure.kind == "histogram")
        assert list(measure.bounds) == sorted(set(measure.bounds))
        assert all(series.startswith("ray_gmd_") for series in measure.series)
    assert MEASURES["gmd_images"].series == ("ray_gmd_images_total",)
    assert MEASURES["gmd_score"].series == ("ray_gmd_score_bucket", "ray_gmd_score_sum", "ray_gmd_score_count")


def test_nothing_is_recorded_without_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> object:
        raise AssertionError(name)

    monkeypatch.setattr(metrics, "_metric", refuse)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    record("gmd_images", 1, {"run": "a", "state": "accepted"})


def test_a_block_of_rows(recorded: Recorded) -> None:
    columns: dict[str, list[Any]] = {"id": ["a", "b", "c"], "score": [4.0, 5.0, None]}
    columns["seconds_project"] = [0.5, None, 2.0]
    record_rows("runs/a", {"accepted": 1, "failed": 2}, {"accepted": 3, "rejected": 1, "failed": 2}, columns, 7)
    run = {"run": "runs/a"}
    assert recorded == [
        ("gmd_images", 1, {**run, "state": "accepted"}),
        ("gmd_images", 2, {**run, "state": "failed"}),
        ("gmd_images_waiting", 7, run),
        ("gmd_pass_rate", 0.75, run),
        ("gmd_score", 4.0, run),
        ("gmd_score", 5.0, run),
        ("gmd_stage_seconds", 0.5, {**run, "stage": "project"}),
        ("gmd_stage_seconds", 2.0, {**run, "stage": "project"}),
    ]
    for name, _, labels in recorded:
        assert set(labels) == set(MEASURES[name].labels)


def test_a_pass_rate_needs_a_score(recorded: Recorded) -> None:
    record_rows("a", {"failed": 2}, {"failed": 2}, {}, 0)
    assert [name for name, _, _ in recorded] == ["gmd_images", "gmd_images_waiting"]


@pytest.mark.parametrize(
    ("out", "label"),
    [("/data/runs/a", "runs/a"), ("s3://bucket/team/run/?endpoint=x", "team/run"), ("runs/default", "runs/default")],
)
def test_the_label_of_a_run_has_no_options_of_its_url(out: str, label: str) -> None:
    assert run_label(out) == label


def test_actors_are_named_by_stage_number_and_model() -> None:
    first, second = ActorNames("project", "FLUX.1-dev"), ActorNames("project", "FLUX.1-dev")
    names = [first()["name"], first()["name"], second()["name"]]
    assert len(set(names)) == 3, "Ray wants unique names"
    assert all(re.fullmatch(r"project(\.\d+)?/\d+/FLUX\.1-dev", name) for name in names)
    assert model_name(SimpleNamespace(path="/models/FLUX.1-dev/")) == "FLUX.1-dev"
    assert model_name(SimpleNamespace(path=None, metric="niqe")) == "niqe"


def test_a_gauge_is_set_again_until_the_session_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[float] = []
    session = SimpleNamespace(alive=True)
    monkeypatch.setattr(metrics, "REFRESH_S", 0.02)
    monkeypatch.setattr(metrics, "_metric", lambda name: SimpleNamespace(set=lambda value, _: values.append(value)))
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: session.alive))
    gauges = metrics._Gauges()
    gauges.set("gmd_train_step", 1, {"run": "a", "fine_tune": "b"})
    gauges.set("gmd_train_step", 2, {"run": "a", "fine_tune": "b"})
    end = time.monotonic() + 10
    while len(values) < 5 and time.monotonic() < end:
        time.sleep(0.01)
    assert values[:2] == [1, 2]
    assert set(values[2:]) == {2}, "the last value alone comes again"
    session.alive = False
    thread = gauges._thread
    assert thread is not None
    thread.join(PATIENCE_S)
    assert not thread.is_alive()

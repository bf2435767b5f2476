"""The parent run after a run: gains to sort by, data sets, system metrics, code, model card, the experiment."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

from gmd_ray.config import Config
from gmd_ray.config.load import resolved
from gmd_ray.evaluation.results import TRUTH
from gmd_ray.hashing import content_digest
from gmd_ray.tracking import MlflowRecorder, record_outcome, start_run
from gmd_ray.tracking.model_folder import model_card
from tests.evaluation.conftest import write_store
from tests.tracking.measures import measured


def test_gains_and_data_sets_are_on_the_parent_run_once(run: Config, client: MlflowClient) -> None:
    write_store(Path(run.out), [5.0, 4.0, None])
    run.source.hq, run.evaluation.target_lq = "s3://me:SECRET@bucket/hq", "/photos/test"
    record = pa.table({"key": ["hq/b.png", "hq/a.png"], "digest": ["22", "11"]})
    (Path(run.out) / "finetune" / "adapted").mkdir(parents=True)
    pq.write_table(record, Path(run.out) / "finetune" / "adapted" / "sources.parquet")
    rng = np.random.default_rng(0)
    base = rng.normal(6, 1, 12)
    gained = rng.normal(0.5, 0.2, 12)  # NIQE falls by so much
    evaluation = measured(
        {("baseline", "target", "niqe"): list(base), ("adapted", "target", "niqe"): list(base - gained)}
    )
    for _ in range(2):  # a resumed run has them once
        with start_run(run, resolved(run)) as recorder:
            record_outcome(run, recorder, evaluation)
    assert isinstance(recorder, MlflowRecorder)
    found = client.get_run(recorder.run_id)
    metrics = found.data.metrics
    assert metrics["gain/target/niqe"] == pytest.approx(gained.mean())
    assert metrics["gain/target/niqe/low"] < gained.mean() < metrics["gain/target/niqe/high"]
    assert metrics["gain/target/niqe/n"] == 12
    inputs = {item.dataset.name: item for item in found.inputs.dataset_inputs}
    assert len(found.inputs.dataset_inputs) == 3
    assert {name: item.tags[0].value for name, item in inputs.items()} == {
        "pairs": "training", "source": "training", "test target": "test",
    }  # fmt: skip
    assert inputs["test target"].dataset.digest == evaluation.test_set("target")
    source = content_digest(b"('hq/a.png', '11')\n('hq/b.png', '22')\n")
    assert inputs["source"].dataset.digest == source[:36]
    assert json.loads(inputs["source"].dataset.profile) == {"files": 2, "digest": source}
    assert json.loads(inputs["source"].dataset.source) == {"uri": "s3://***@bucket/hq"}
    assert json.loads(inputs["pairs"].dataset.profile)["rows"] == 3
    # A store with another row is another data set.
    shutil.rmtree(Path(run.out) / "pairs")
    write_store(Path(run.out), [5.0, 4.5, None])
    with start_run(run, resolved(run)) as recorder:
        record_outcome(run, recorder, evaluation)
    found = client.get_run(recorder.run_id)
    assert [item.dataset.name for item in found.inputs.dataset_inputs].count("pairs") == 2


def test_an_experiment_opens_with_the_table_of_runs_and_says_which_columns_count(
    run: Config, client: MlflowClient
) -> None:
    with start_run(run, {}):
        pass
    experiment = client.get_experiment_by_name(run.tracking.experiment)
    assert experiment is not None
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert "`gain/target/<metric>`" in experiment.tags["mlflow.note.content"]


def test_system_metrics_go_on_in_a_resumed_run(run: Config, client: MlflowClient) -> None:
    run.tracking.system_metrics_interval_s = 0.05
    for _ in range(2):
        with start_run(run, {}) as recorder:
            time.sleep(1.2)
    assert isinstance(recorder, MlflowRecorder)
    [key] = [
        name for name in client.get_run(recorder.run_id).data.metrics if name.endswith("/cpu_utilization_percentage")
    ]
    assert key.startswith("system/")
    steps = [point.step for point in client.get_metric_history(recorder.run_id, key)]
    assert len(steps) > 2
    assert steps == sorted(set(steps))


def test_the_code_of_an_image_or_a_job_is_named_by_the_environment(
    run: Config, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GMD_RAY_GIT_COMMIT", "0123abc")
    with start_run(run, {}) as recorder:
        assert isinstance(recorder, MlflowRecorder)
    assert client.get_run(recorder.run_id).data.tags["mlflow.source.git.commit"] == "0123abc"


def test_settings_of_a_job_are_the_same_when_it_is_submitted_again(
    run: Config, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray unpacks the working directory at another place each time."""
    monkeypatch.setattr("gmd_ray.tracking.runs.in_job", lambda: True)
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        run.source.hq = str(tmp_path / place / "photos")
        with start_run(run, resolved(run)) as recorder:
            assert isinstance(recorder, MlflowRecorder)
    data = client.get_run(recorder.run_id).data
    assert data.params["source.hq"] == "photos"
    assert not [key for key in data.tags if key.startswith("changed.")]


def test_the_card_says_gain_interval_and_number_and_has_no_accidental_links() -> None:
    baseline = [20.0, 22.0, 24.0, 26.0, 28.0, 30.0, 32.0, 34.0]
    adapted = [value + 1 + 0.01 * i for i, value in enumerate(baseline)]
    evaluation = measured({("baseline", "target", "psnr"): baseline, ("adapted", "target", "psnr"): adapted})
    card = model_card(Config(), evaluation, {})
    [row] = [line for line in card.splitlines() if line.startswith("| target | psnr")]
    found = re.search(r"\+(1\.\d+) \[\+(1\.\d+), \+(1\.\d+)\], n=8, better", row)
    assert found is not None, row
    mean, low, high = map(float, found.groups())
    assert low < mean < high
    # Showdown, which renders MLflow's page, takes brackets that parentheses follow for a link, spaces or not.
    assert re.search(r"\]\s*\(", card) is None


def test_the_card_has_the_untouched_photo_the_truth_and_what_each_metric_means() -> None:
    values = {"lq": 6.8, "baseline": 8.0, "adapted": 9.5, TRUTH: 11.2}
    table = {
        (name, "target", metric): [value + 0.1 * i for i in range(8)]
        for name, value in values.items()
        for metric in ("psnr", "niqe")
        if (name, metric) != (TRUTH, "psnr")
    }
    table["lq", "target", "psnr"] = [40.0 + 0.1 * i for i in range(8)]
    evaluation = replace(measured(table), variants={"psnr": "RGB, 4 px border cut off"})
    card = model_card(Config(), evaluation, {})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines() if line.startswith("| ")]
    assert rows[0] == [
        "test set", "metric", "untouched photo", "baseline", "adapted", "ground truth", "gain over the baseline",
    ]  # fmt: skip
    assert rows[2][:6] == ["target", "psnr", "40.35", "8.35", "9.85", ""]
    assert rows[3][:6] == ["target", "niqe", "7.15", "8.35", "9.85", "11.55"]
    assert rows[3][6].endswith("closer to the truth"), "lower is said to be better, and the truth is higher"
    assert "- psnr: higher is better; RGB, 4 px border cut off" in card.splitlines()
    assert "- niqe: lower is better" in card.splitlines()
    assert "yet the untouched photos are better than both students" in card

"""The whole run on a toy world small enough for a test: real models, real engines, books, resume."""

from __future__ import annotations

import contextlib
import html
import subprocess
import sys
from pathlib import Path
from unittest.mock import create_autospec

import pyarrow as pa
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from gmd_ray.adapt import adapt
from gmd_ray.config import Config
from gmd_ray.config.load import load_config
from gmd_ray.demo.toy import prepare as preparation
from gmd_ray.demo.toy.prepare import WorldSize
from gmd_ray.evaluation import load_evaluation
from gmd_ray.evaluation.actor import EvaluationActor
from gmd_ray.evaluation.items import Item
from gmd_ray.tracking import TrackingError, register_kept
from tests.evaluation.conftest import write_store
from tests.training.conftest import fit_in_process

SMALL = WorldSize(seed=7, target=8, severe=2, source=6, target_test=4, source_test=3)


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(preparation, "WorldSize", lambda: SMALL)
    return load_config(
        [
            "preset=toy", f"out={tmp_path / 'run'}", "training.steps=6", "training.batch_size=4",
            "training.num_workers=1",
            "training.checkpoint_every=3", "training.log_every=2", "teacher.steps=1", "teacher.injection.steps=1",
            "scorer.threshold=1", "generation.rows_per_block=4", "evaluation.metrics=[psnr,lpips]", "controls=[median]",
            "evaluation.report_images=2",
            "tracking.gates=[{metric: psnr, dataset: target, against: baseline, min_gain: 50}]",
        ]
    )  # fmt: skip


def test_what_is_missing_is_told_before_anything_heavy_is_imported() -> None:
    code = """
import sys
from gmd_ray.adapt import adapt
from gmd_ray.config import Config
from gmd_ray.errors import ConfigError
try:
    adapt(Config())
except ConfigError as error:
    assert "target.path" in str(error), error
    sys.exit(", ".join({"ray", "torch", "mlflow", "pyiqa"} & set(sys.modules)) or 0)
sys.exit("not refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for both tests: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def without_ray(cfg: Config, database: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Adaptation in this process: Stages 0 to 1b only write a store; the other stages and MLflow are the real ones."""
    import gmd_ray.evaluation
    import gmd_ray.generation

    def generate(cfg: Config, *args: object, **kwargs: object) -> str:
        write_store(Path(cfg.out), [5.0, 4.5, 4.0, 0.5, None])
        return "5 images"

    def stream(cfg: Config, students: dict[str, str], items: list[Item], measured: int) -> list[pa.Table]:
        return [EvaluationActor(cfg, students)(pa.Table.from_pylist(items))]

    monkeypatch.setattr("gmd_ray.adapt.ray_session", lambda cfg: contextlib.nullcontext())
    stand_in = create_autospec(gmd_ray.generation.generate, side_effect=generate)
    monkeypatch.setattr(gmd_ray.generation, "generate", stand_in)
    monkeypatch.setattr("gmd_ray.training.driver.fit", fit_in_process)
    # The package exports a function of the module's name.
    monkeypatch.setattr(sys.modules["gmd_ray.evaluation.evaluate"], "_stream", stream)
    cfg.controls = []
    cfg.tracking.uri = database
    cfg.tracking.experiment = cfg.tracking.model = request.node.name
    return cfg


def report_of(cfg: Config) -> str:
    return html.unescape(Path(cfg.out, "report.html").read_text())


def test_a_registry_that_is_away_at_the_end_costs_the_promotion_alone(
    without_ray: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = without_ray

    def broken(self: MlflowClient, name: str, *args: object, **kwargs: object) -> None:
        raise MlflowException("the registry is on fire")

    monkeypatch.setattr(MlflowClient, "create_registered_model", broken)
    with pytest.raises(TrackingError, match="the registry is on fire") as caught:
        adapt(cfg)
    assert "\n" not in str(caught.value)
    page = report_of(cfg)
    assert "refused: MLflow at …/mlflow.db failed while registering" in page, "and no folder of this machine"
    assert str(caught.value).partition("mlflow.db")[2] in page
    assert "Not promoted" in page
    assert "version 1" not in page
    assert f"{cfg.out}/report.html" in caplog.text
    # The stages before it are done, and what they measured is kept.
    assert Path(cfg.out, "finetune", "adapted", "student.safetensors").is_file()
    found = load_evaluation(cfg.out)
    assert found.students == ("lq", "baseline", "adapted")
    assert len(found.values("adapted", "target", "psnr")) == SMALL.target_test

    monkeypatch.undo()
    decision = register_kept(cfg)
    assert decision is not None
    assert (decision.version, decision.promoted) == ("1", False), "the gate asks for 50 dB"
    assert register_kept(cfg) is None, "nothing waits any more"


def test_a_version_that_cannot_be_promoted_is_told_with_its_number(
    without_ray: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr("gmd_ray.tracking.champions.Journal.champion", broken)
    with pytest.raises(TrackingError, match="failed while promoting"):
        adapt(without_ray)
    page = report_of(without_ray)
    assert f"{without_ray.tracking.model} version 1" in page
    assert "Not promoted" in page

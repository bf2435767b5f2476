"""One `adapt` on Ray from photos to registry, and again, with secrets in its settings that it must tell nowhere."""

from __future__ import annotations

import io
import json
import logging
import stat
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from gmd_ray import adapt as adapt_module
from gmd_ray.adapt import Adapted
from gmd_ray.cli import main
from gmd_ray.config import Config
from gmd_ray.config.load import load_config
from gmd_ray.demo.toy.prepare import WorldSize, prepare
from gmd_ray.errors import ExitCode

SIZE = WorldSize(seed=7, target=8, severe=2, source=6, target_test=4, source_test=3)
SECRETS = ("planted-folder", "planted-password", "planted/slash", "planted-signature", "planted-token")


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[Adapted]:
    """The exit status of each `adapt` of the command line."""
    found: list[Adapted] = []
    adapt = adapt_module.adapt

    def kept(cfg: Config) -> Adapted:
        found.append(adapt(cfg))
        return found[-1]

    monkeypatch.setattr(adapt_module, "adapt", kept)
    return found


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line of a run on a toy world of nine photos, one of them torn."""
    photos = tmp_path / "planted-folder" / "photos"
    prepare(photos, SIZE)
    (photos / "target_lq" / "torn.png").write_bytes(b"no image")
    monkeypatch.setenv("PLANTED_FOLDER", str(photos))
    monkeypatch.setenv("PLANTED_PASSWORD", "planted-password")
    return [
        "adapt", "preset=toy", "prepare=null", f"out={tmp_path / 'run'}", "controls=[median]",
        *(f"{key}=${{oc.env:PLANTED_FOLDER}}/{name}" for key, name in (
            ("target.path", "target_lq"), ("source.hq", "source_hq"), ("source.lq", "source_lq"),
            ("evaluation.target_lq", "target_test_lq"), ("evaluation.target_hq", "target_test_hq"),
            ("evaluation.source_hq", "source_test_hq"), ("evaluation.source_lq", "source_test_lq"),
            ("evaluation.pairs_hq", "target_hq"),
        )),
        "data.root=https://me:${oc.env:PLANTED_PASSWORD}@host/x",
        "evaluation.weights.niqe=s3://me:planted/slash@bucket/niqe.mat?secret_key=planted-signature",
        "evaluation.weights.dists=https://host/dists.pth?X-Amz-Security-Token=planted-token&a=1",
        "teacher.steps=1", "teacher.injection.steps=1", "teacher.pool.min=1", "teacher.pool.max=1",
        "scorer.threshold=1", "generation.rows_per_block=4",
        "training.steps=6", "training.batch_size=4", "training.checkpoint_every=3", "training.log_every=2",
        "evaluation.metrics=[psnr,lpips]", "evaluation.report_images=2",
        "tracking.gates=[{metric: psnr, dataset: target, against: baseline, min_gain: 50}]",
    ]  # fmt: skip


def test_a_run_from_photos_to_registry_and_again_tells_no_secret(
    words: list[str],
    results: list[Adapted],
    tmp_path: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    cfg, out = load_config(words[1:]), tmp_path / "run"
    kept = io.StringIO()
    handler = logging.StreamHandler(kept)  # any handler, as one that ships logs to a server
    try:
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        assert main(words) == ExitCode.REFUSED
        check_files(out, results[0])
        runs = check_registry(cfg, out, results[0])

        # The same command again: nothing projected, nothing trained, the same runs and the same version.
        logging.getLogger().addHandler(handler)
        stamps = {f: f.stat().st_mtime_ns for f in [*out.glob("pairs/rows/*"), Path(results[0].student)]}
        assert main(words) == ExitCode.REFUSED, "and again, from what is there"
        assert {f: f.stat().st_mtime_ns for f in stamps} == stamps
        assert json.loads((out / "pairs" / "manifest.json").read_text())["resumed"] == 9
        assert check_registry(cfg, out, results[1]) == runs
        assert results[1].version == results[0].version

        assert main(["status", str(out)]) == 0
        main(["verify", str(out)])
        assert main(["config", *words[1:]]) == 0
    finally:
        logging.getLogger().removeHandler(handler)
        logging.setLogRecordFactory(logging.LogRecord)
    told, errors = capfd.readouterr()
    check_secrets(out, told + errors + kept.getvalue())
    # The settings that were kept are those of this run, where the environment still has its values.
    weights = [word for word in words if word.startswith("evaluation.weights")]
    assert load_config([f"config={out / 'config.yaml'}", *weights]) == load_config(words[1:])


def check_files(out: Path, result: Adapted) -> None:
    """Check the store, the figures and the report of the first run."""
    manifest = json.loads((out / "pairs" / "manifest.json").read_text())
    assert manifest["inputs"] == 9 == manifest["accepted"] + manifest["rejected"] + manifest["failed"]
    rows = pq.read_table(out / "evaluation" / "metrics.parquet").to_pylist()
    measured = {(r["student"], r["dataset"]) for r in rows if r["metric"] == "psnr" and r["value"] is not None}
    assert measured >= {(s, d) for s in ("baseline", "adapted", "median") for d in ("target", "source")}
    # A metric without weights is reported with its reason wherever results are shown.
    assert "lpips" in result.table
    assert "lpips" in Path(result.report).read_text()


def check_registry(cfg: Config, out: Path, result: Adapted) -> dict[str, str]:
    """Check the registered model, and return the MLflow runs by id."""
    # The gate asked for 50 dB: refused, and says so; the version is there as challenger all the same.
    assert not result.promoted
    assert any("psnr" in reason for reason in result.reasons)
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    model = client.get_registered_model(cfg.tracking.model)
    assert {alias: str(version) for alias, version in model.aliases.items()} == {"challenger": result.version}
    experiment = client.get_experiment_by_name(cfg.tracking.experiment)
    assert experiment is not None
    runs = {run.info.run_id: run.info.run_name or "" for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs.values()) == sorted(["run", "generate", "finetune-adapted", "finetune-median", "evaluate"])
    return runs


def check_secrets(out: Path, told: str) -> None:
    """Check that no secret is in what was told, nor in any file."""
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {"config.yaml", "mlflow.db", "report.html", "manifest.json", "metrics.parquet"} <= {p.name for p in files}
    assert stat.S_IMODE((out / "config.yaml").stat().st_mode) == 0o600
    for secret in SECRETS:
        assert secret not in told
        found = [path for path in files if secret.encode() in path.read_bytes()]
        assert [str(path.relative_to(out)) for path in found] == [], secret
    parts = sorted(out.glob("pairs/rows/part-*.parquet"))
    rows = [row for part in parts for row in pq.read_table(part, columns=["id", "uri", "status"]).to_pylist()]
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert failed["id"] == "torn.png"
    assert all(row["uri"].startswith("***") for row in rows)

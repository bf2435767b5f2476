"""Secrets planted in the settings of a whole run, and looked for in all that it says and leaves."""

from __future__ import annotations

import io
import logging
import stat
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gmd_ray.cli import main
from gmd_ray.config.load import load_config
from gmd_ray.demo.toy.prepare import WorldSize, prepare

SIZE = WorldSize(seed=7, target=5, severe=1, source=4, target_test=2, source_test=2)
SECRETS = ("planted-folder", "planted-password", "planted/slash", "planted-signature", "planted-token")


def test_a_run_tells_none_of_its_secrets(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    photos, out = tmp_path / "planted-folder" / "photos", tmp_path / "run"
    prepare(photos, SIZE)
    (photos / "target_lq" / "torn.png").write_bytes(b"no image")
    monkeypatch.setenv("PLANTED_FOLDER", str(photos))
    monkeypatch.setenv("PLANTED_PASSWORD", "planted-password")
    words = [
        "adapt", "preset=toy", "prepare=null", f"out={out}", "controls=[]",
        *(f"{key}=${{oc.env:PLANTED_FOLDER}}/{name}" for key, name in (
            ("target.path", "target_lq"), ("source.hq", "source_hq"), ("source.lq", "source_lq"),
            ("evaluation.target_lq", "target_test_lq"), ("evaluation.target_hq", "target_test_hq"),
            ("evaluation.source_hq", "source_test_hq"), ("evaluation.source_lq", "source_test_lq"),
            ("evaluation.pairs_hq", "target_hq"),
        )),
        "data.root=https://me:${oc.env:PLANTED_PASSWORD}@host/x",
        "evaluation.weights.niqe=s3://me:planted/slash@bucket/niqe.mat?secret_key=planted-signature",
        "evaluation.weights.lpips=https://host/lpips.pth?X-Amz-Security-Token=planted-token&a=1",
        "teacher.steps=1", "teacher.injection.steps=1", "scorer.threshold=1", "training.steps=2",
        "training.batch_size=4", "training.checkpoint_every=2", "training.log_every=1", "evaluation.report_images=1",
        "generation.rows_per_block=3", "tracking.gates=[{metric: psnr, against: baseline, min_gain: 50}]",
    ]  # fmt: skip
    kept = io.StringIO()
    handler = logging.StreamHandler(kept)  # any handler, as one that ships logs to a server
    try:
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        assert main(words) == 0
        logging.getLogger().addHandler(handler)
        assert main(words) == 0, "and again, from what is there"
        assert main(["status", str(out)]) == 0
        main(["verify", str(out)])
        assert main(["config", *words[1:]]) == 0
    finally:
        logging.getLogger().removeHandler(handler)
        logging.setLogRecordFactory(logging.LogRecord)
    told, errors = capfd.readouterr()
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {"config.yaml", "mlflow.db", "report.html", "manifest.json", "metrics.parquet"} <= {p.name for p in files}
    assert stat.S_IMODE((out / "config.yaml").stat().st_mode) == 0o600
    for secret in SECRETS:
        assert secret not in told + errors + kept.getvalue()
        found = [path for path in files if secret.encode() in path.read_bytes()]
        assert [str(path.relative_to(out)) for path in found] == [], secret
    (failed,) = [row for row in rows(out) if row["status"] == "failed"]
    assert failed["id"] == "torn.png"
    assert all(row["uri"].startswith("***") for row in rows(out))
    # The settings that were kept are those of this run, where the environment still has its values.
    weights = [word for word in words if word.startswith("evaluation.weights")]
    assert load_config([f"config={out / 'config.yaml'}", *weights]) == load_config(words[1:])


def rows(out: Path) -> list[dict[str, str]]:
    parts = sorted(out.glob("pairs/rows/part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part, columns=["id", "uri", "status"]).to_pylist()]

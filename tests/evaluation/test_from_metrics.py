"""`evaluate --from-metrics`: gates, tables and report anew, from the figures of an earlier evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gmd_ray.cli import main
from gmd_ray.config import Config
from gmd_ray.config.load import save_config
from gmd_ray.errors import ExitCode
from tests.evaluation.test_evaluate import judged


@pytest.fixture
def measured(run: Config, students: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory with figures and settings, whose photos and models are gone."""
    run.evaluation.report_images = 1
    run.tracking.enabled = False
    judged(run, students).save(run.out)
    save_config(run, Path(run.out) / "config.yaml")
    for folder in ("target", "source"):
        shutil.rmtree(tmp_path / folder)
    for path in students.values():
        Path(path).unlink()
    for name in ("gmd_ray.evaluation.methods.load_student", "gmd_ray.evaluation.actor.load_metric"):
        monkeypatch.setattr(name, lambda *args, **kwargs: pytest.fail("a model was loaded"))
    monkeypatch.setattr("gmd_ray.ray_utils.session.ray_session", lambda cfg: pytest.fail("Ray was started"))
    return Path(run.out)


def test_gates_tables_and_report_come_from_what_was_measured(
    measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gates = ["tracking.gates=[{metric: psnr, dataset: target, against: baseline, min_gain: -99}]"]
    assert main(["evaluate", "--from-metrics", str(measured), *gates]) == 0
    shown = capsys.readouterr()
    assert "| adapted |" in shown.out
    [verdict] = [line for line in (shown.out + shown.err).splitlines() if "target psnr" in line and "gain" in line]
    assert "holds: target psnr" in verdict
    folder = measured / "evaluation"
    assert {path.name for path in folder.iterdir()} == {
        "metrics.parquet", "pictures.parquet", "table.md", "table.tex", "summary.json"
    }  # fmt: skip
    assert (measured / "report.html").stat().st_size > 10_000
    before = (folder / "summary.json").read_text()
    # A stricter gate refuses the same figures, a published table joins them, and nothing measured has changed.
    strict = ["tracking.gates=[{metric: psnr, dataset: target, against: baseline, min_gain: 99}]"]
    assert (
        main(["evaluate", "--from-metrics", str(measured), *strict, "evaluation.published=3/REDS"]) == ExitCode.REFUSED
    )
    shown = capsys.readouterr()
    assert "refused: target psnr" in shown.out + shown.err
    after = json.loads((folder / "summary.json").read_text())
    assert after.pop("published")["table"] == "3/REDS"
    expected = json.loads(before)
    del expected["published"]
    assert after == expected


def test_the_run_may_be_named_by_its_setting(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--from-metrics", f"config={measured / 'config.yaml'}"]) == 0
    assert "| adapted |" in capsys.readouterr().out


def test_without_figures_it_says_what_to_do(measured: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["evaluate", "--from-metrics", str(tmp_path)]) == 2
    assert "no config.yaml there; give the directory of a run" in capsys.readouterr().err
    shutil.rmtree(measured / "evaluation")
    assert main(["evaluate", "--from-metrics", str(measured)]) == ExitCode.DATA
    assert "evaluate this run first" in capsys.readouterr().err

"""Run directories and databases that cannot be written, and disks that are too full."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from gmd_ray.planning import Findings, Preflight
from tests.planning.conftest import config, settings
from tests.test_destinations import everything

Usage = namedtuple("Usage", "total used free")


def run(root: Path, *more: str, verb: str = "adapt") -> Findings:
    return Preflight(config(root, *more), verb).run()


@pytest.mark.parametrize("verb", ["adapt", "generate", "finetune", "pretrain", "evaluate", "plan"])
@pytest.mark.parametrize(("out", "words"), [("file", "it is a file"), ("link/below", "which is not there")])
def test_out(verb: str, out: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "unmounted")
    settings(tmp_path)
    before = everything(tmp_path)
    [error] = [f for f in run(tmp_path, f"out={tmp_path / out}", verb=verb).of("error") if f.code == "place"]
    assert error.message.startswith(f"out={tmp_path / out}: cannot be written (")
    assert words in error.message
    assert everything(tmp_path) == before


def test_what_lies_in_out(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "finetune").write_text("a file")
    (tmp_path / "run" / "config.yaml").mkdir()
    lines = [finding.message for finding in run(tmp_path).of("error")]
    assert any(f"{tmp_path / 'run' / 'finetune'}: cannot be written (it is a file)" in line for line in lines)
    assert any(f"{tmp_path / 'run' / 'config.yaml'}: cannot be written (it is a folder)" in line for line in lines)


def test_a_tracking_database(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = run(tmp_path, f"tracking.uri=sqlite:///{tmp_path}/file/mlflow.db")
    [error] = found.of("error")
    assert (error.key, "is a file" in error.message) == ("tracking.uri", True)
    assert run(tmp_path, f"tracking.uri=sqlite:///{tmp_path}/new/mlflow.db").ok
    assert run(tmp_path, f"tracking.uri=sqlite:///{tmp_path}/file/mlflow.db", "tracking.enabled=false").ok


def test_free_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four photos of 48x32 at scale 1: lq, restored and pseudo-target, 3 bytes a pixel, make 55 kB uncompressed; and
    three checkpoints of four times the student's 132 kB."""
    levels = {}
    for free in (10_000, 1_000_000, 1_610_000, 10**12):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: Usage(10**12, 0, free))
        found = run(tmp_path)
        levels[free] = [finding.level for finding in found.lines if finding.code == "disk"]
    assert levels == {10_000: ["error"], 1_000_000: ["error"], 1_610_000: ["warning"], 10**12: ["fact"]}
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**12, 0, 10_000))
    [error] = run(tmp_path, verb="generate").of("error")
    assert "are free, and the run writes 1.11e-05 to 5.53e-05 GB; give another out, or make room" in error.message
    assert run(tmp_path, verb="evaluate").ok
    assert run(tmp_path, verb="plan").ok

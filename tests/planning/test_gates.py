"""Metrics without a value and gates that can never hold: told before Stage 0."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray.planning import Findings, Preflight
from tests.planning.conftest import config, picture

NO_TRUTH = "evaluation.target_hq=null"
NO_SOURCE = ("evaluation.source_hq=null", "evaluation.source_lq=null")


def run(root: Path, *more: str, verb: str = "adapt") -> Findings:
    return Preflight(config(root, *more), verb).run()


def said(found: Findings, level: str, code: str) -> list[str]:
    return [finding.message for finding in found.of(level) if finding.code == code]


def test_the_default_gates_without_ground_truth(tmp_path: Path) -> None:
    """The README's own first command: it can never promote."""
    found = run(tmp_path, NO_TRUTH)
    assert found.ok
    [line] = said(found, "warning", "gates")
    assert line.startswith("tracking.gates[0] (psnr on target, against baseline) can never hold")
    assert "evaluation.target_hq is not set" in line
    found = run(tmp_path, "evaluation.target_lq=null", NO_TRUTH, "evaluation.metrics=[ssim]")
    lines = said(found, "warning", "gates")
    assert [line.partition(" (")[0] for line in lines] == ["tracking.gates[0]", "tracking.gates[1]"]
    assert "psnr is not among evaluation.metrics" in lines[0]
    assert said(run(tmp_path, NO_TRUTH, "tracking.enabled=false"), "warning", "gates") == []
    assert said(run(tmp_path, NO_TRUTH, verb="evaluate"), "warning", "gates") == [], "it promotes nothing"


def test_gates_that_can_hold_are_not_mentioned(tmp_path: Path) -> None:
    assert said(run(tmp_path), "warning", "gates") == []
    gates = "tracking.gates=[{metric: psnr, dataset: source, against: baseline, min_gain: 0}]"
    assert said(run(tmp_path, NO_TRUTH, gates), "warning", "gates") == []


@pytest.mark.parametrize("verb", ["adapt", "evaluate"])
def test_no_metric_at_all_is_refused(verb: str, tmp_path: Path) -> None:
    """A table of dashes."""
    [line] = said(run(tmp_path, NO_TRUTH, *NO_SOURCE, "evaluation.metrics=[psnr]", verb=verb), "error", "metrics")
    assert line == (
        "evaluation.metrics: none of them can have a value (psnr: it needs ground truth, and evaluation.target_hq is "
        "not set)"
    )


def test_some_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmd_ray.planning.models.missing_weights", lambda *_: [])
    found = run(tmp_path, NO_TRUTH, *NO_SOURCE, "evaluation.metrics=[psnr,brisque]")
    assert found.ok
    assert said(found, "warning", "metrics") == [
        "evaluation.metrics: psnr will have no value: it needs ground truth, and evaluation.target_hq is not set"
    ]
    assert said(run(tmp_path, NO_TRUTH, "evaluation.metrics=[psnr,brisque]"), "warning", "metrics") == [], (
        "on the source"
    )


@pytest.mark.parametrize(
    ("settings", "metric", "why"),
    [
        (["evaluation.metrics=[psnr,niqe]"], "niqe", "it needs 96 pixels on each side"),
        (["evaluation.metrics=[psnr,ssim]", "evaluation.crop_border=11"], "ssim", "it needs 33 pixels on each side"),
        (["evaluation.metrics=[psnr,clipscore]"], "clipscore", "it has no value for single images"),
        (["evaluation.metrics=[psnr,fid]", "evaluation.limit=1"], "fid", "two images or more"),
    ],
)
def test_images_that_a_metric_cannot_measure(
    settings: list[str], metric: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gmd_ray.planning.models.missing_weights", lambda *_: [])
    [line] = said(run(tmp_path, *settings), "warning", "metrics")
    assert line.startswith(f"evaluation.metrics: {metric} will have no value: ")
    assert why in line


def test_the_licence_of_the_teacher_is_told_and_may_stand_in_the_way(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert said(found, "fact", "licence") == ["the teacher's licence: commercial (README.md: license: apache-2.0)"]
    required = "tracking.require_commercial_teacher=true"
    assert said(run(tmp_path, required), "warning", "gates") == []
    for verb in ("adapt", "plan"):
        [line] = said(run(tmp_path, required, "teacher.licence=non-commercial", verb=verb), "warning", "gates")
        assert line.startswith(
            "tracking.require_commercial_teacher: the teacher's licence is non-commercial (teacher.licence), so that "
            "nothing will be promoted"
        )
    off = run(tmp_path, required, "teacher.licence=non-commercial", "tracking.enabled=false")
    assert said(off, "warning", "gates") == [], "nothing is promoted anyway"


def test_missing_outputs_and_unknown_tables_are_told_before_anything_starts(tmp_path: Path) -> None:
    """Ready outputs of another program: one of two is missing; then a checkpoint that is not there."""
    ready = tmp_path / "ready"
    ready.mkdir()
    found = run(tmp_path, f"evaluation.methods.Hi-Diff=folder:{ready}", "evaluation.published=3/REDS")
    assert len(said(found, "error", "methods")) == 1, "an empty folder"
    picture(ready / "0.png")
    found = run(tmp_path, f"evaluation.methods.Hi-Diff=folder:{ready}", "evaluation.published=3/RED")
    first, second = said(found, "error", "methods")
    assert first.startswith(f"evaluation.methods.Hi-Diff=folder:{ready}: 1 of 2 target photos have no output")
    assert second.startswith("evaluation.published=3/RED: did you mean '3/REDS'")
    picture(ready / "1.png")
    assert said(run(tmp_path, f"evaluation.methods.Hi-Diff=folder:{ready}"), "error", "methods") == []
    found = run(tmp_path, f"evaluation.methods.other=model:{tmp_path / 'none.pth'}", verb="evaluate")
    assert said(found, "error", "methods")[0].endswith("no such file or folder")


def test_the_teacher_of_a_row_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "kontext").mkdir()
    found = run(tmp_path, f"evaluation.methods.Kontext=online:kontext@{tmp_path / 'kontext'}")
    assert any(str(tmp_path / "kontext") in line for line in said(found, "error", "weights"))

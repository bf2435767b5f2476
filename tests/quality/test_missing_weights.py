"""Missing weight files and their places, found without building a metric."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("pyiqa")

from gmd_ray.config import ScorerConfig
from gmd_ray.quality import fetch_command, missing_scorer_weights, missing_weights
from gmd_ray.quality.missing_weights import default_directory


def test_a_local_file_replaces_all_but_a_backbone(empty_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(b"weights")
    mine = str(tmp_path / "mine.pth")
    assert missing_weights("nima", mine, "scorer.weights") == []
    [entry] = missing_weights("lpips", mine, "evaluation.weights.lpips")
    place = empty_directory / "checkpoints" / "alexnet-owt-7be5be79.pth"
    assert (entry.reason, entry.place) == (f"no {place.name}; put it at {place}", place)
    assert "no such file" in missing_weights("nima", str(tmp_path / "gone.pth"), "scorer.weights")[0].reason


def test_a_directory_holds_the_files_of_every_metric(empty_directory: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    (weights / "pyiqa").mkdir(parents=True)
    (weights / "pyiqa" / "niqe_modelparameters.mat").write_bytes(b"mat")
    for given in ({"weights": None, "directory": str(weights)}, {"weights": str(weights)}):
        assert missing_weights("niqe", setting="x", **given) == []
        [entry] = missing_weights("brisque", setting="x", **given)
        assert entry.place == weights / "pyiqa" / "brisque_svm_weights.pth"
    [entry] = missing_weights("niqe", None, "x")
    assert entry.place == empty_directory / "pyiqa" / "niqe_modelparameters.mat"


def test_the_fidelity_takes_the_scorers_directory(empty_directory: Path, tmp_path: Path) -> None:
    scorer = ScorerConfig(metric="niqe", weights=str(tmp_path), fidelity="lpips")
    places = [entry.place for entry in missing_scorer_weights(scorer)]
    assert [str(place)[len(str(tmp_path)) + 1 :].split("/")[0] for place in places] == ["pyiqa", "checkpoints", "pyiqa"]
    assert {entry.setting for entry in missing_scorer_weights(scorer)} == {"scorer.weights", "scorer.fidelity_weights"}


def test_metrics_without_files_and_metrics_with_whole_repositories(empty_directory: Path) -> None:
    assert missing_weights("piqe", None, "evaluation.weights.piqe") == [], "a formula of pyiqa"
    assert missing_weights("psnr", None, "evaluation.weights.psnr") == []
    [entry] = missing_weights("fid", None, "evaluation.weights.fid")
    assert "no pt_inception-2015-12-05-6726825d.pth; put it at" in entry.reason
    assert entry.reason.endswith("or set evaluation.weights.fid=FILE")
    found = missing_weights("qalign", None, "evaluation.weights.qalign")
    assert [entry.reason for entry in found] == [
        "no q-future/one-align in the model hub's cache; run `hf download q-future/one-align`"
    ]
    assert fetch_command(found) is None
    found += missing_weights("lpips", None, "x") + missing_weights("dists", None, "x")
    assert fetch_command(found) == "gmd-ray fetch dists lpips --to DIR"


def test_the_default_directory_is_found_without_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = torch.hub.get_dir()
    monkeypatch.delitem(sys.modules, "torch")
    assert str(default_directory()) == before
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    assert default_directory() == tmp_path / "home" / "hub"
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_directory() == tmp_path / "cache" / "torch" / "hub"

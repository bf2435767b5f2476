"""Missing models and weight files: one list before a run starts, and the files that the driver fetches."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

pytest.importorskip("pyiqa")

from gmd_ray.planning import Finding, Preflight
from gmd_ray.planning.models import fetch_weights
from gmd_ray.quality.weight_files import FILES, WeightFile
from tests.planning.conftest import STUDENT, TEACHER, config


@pytest.fixture(autouse=True)
def empty_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights anywhere, whatever this machine has downloaded before."""
    import torch

    hub = tmp_path_factory.mktemp("torch") / "hub"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub))
    return hub


def weights(root: Path, *more: str, verb: str = "adapt", joins: bool = False) -> list[Finding]:
    found = Preflight(config(root, *more), verb, joins=joins).run()
    return [finding for finding in found.lines if finding.code in ("weights", "student")]


def test_the_scorer_and_every_metric_in_one_list(empty_cache: Path, tmp_path: Path) -> None:
    """Without it, a missing file would be found after Ray and its actors have started."""
    found = weights(tmp_path, "scorer.path=null", "scorer.fidelity=lpips", "evaluation.metrics=[psnr,niqe,musiq]")
    assert {(finding.level, finding.key) for finding in found} == {
        ("error", "scorer.weights"),
        ("error", "scorer.fidelity_weights"),
        ("warning", "evaluation.weights.niqe"),
        ("warning", "evaluation.weights.musiq"),
        ("error", ""),
    }
    nima = next(finding.message for finding in found if finding.key == "scorer.weights")
    name = "NIMA_InceptionV2_ava-b0c77c00.pth"
    assert nima == (
        f"the scorer's metric nima: no {name}; put it at {empty_cache / 'pyiqa' / name}, or set scorer.weights=FILE; "
        "it cannot be downloaded from here"
    )
    assert next(finding.message for finding in found if finding.key == "") == (
        "the missing weight files come with `gmd-ray fetch lpips musiq nima niqe --to DIR` on a machine with internet "
        "access; copy DIR here and set scorer.weights=DIR evaluation.weights_dir=DIR"
    )
    assert [f.key for f in weights(tmp_path, "scorer.path=null", verb="generate")] == ["scorer.weights", ""]


def test_a_directory_that_fetch_wrote_holds_them_all(tmp_path: Path) -> None:
    files = {file.place(tmp_path / "w") for name in ("nima", "lpips", "niqe", "fid") for file in FILES[name]}
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"weights")
    places = [f"scorer.weights={tmp_path / 'w'}", f"evaluation.weights_dir={tmp_path / 'w'}"]
    more = ["scorer.path=null", "scorer.fidelity=lpips", "evaluation.metrics=[psnr,niqe,lpips,fid]"]
    assert weights(tmp_path, *more, *places) == []


def test_what_is_in_reach_is_fetched_before_the_run(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants

    from gmd_ray.quality import fetch

    (empty_cache / "pyiqa").mkdir(parents=True)
    (empty_cache / "pyiqa" / "brisque_svm_weights.pth").write_bytes(b"vectors")
    assert weights(tmp_path, "evaluation.metrics=[psnr,brisque]") == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("gmd_ray.planning.models.reachable", lambda urls: dict.fromkeys(urls, True))
    flight = Preflight(config(tmp_path, "scorer.path=null", "evaluation.metrics=[psnr,niqe]"), "adapt")
    found = [finding for finding in flight.run().lines if finding.code == "weights"]
    assert [(finding.level, finding.key) for finding in found] == [
        ("fact", "scorer.weights"), ("fact", "evaluation.weights.niqe"),
    ]  # fmt: skip
    assert "NIMA_InceptionV2_ava-b0c77c00.pth is fetched before the run starts" in found[0].message

    asked: list[str] = []

    def download(file: WeightFile, place: Path) -> None:
        asked.append(file.name)
        if file.name.startswith("niqe"):
            raise fetch.FetchError(f"{file.url}: gone")

    monkeypatch.setattr(fetch, "download", download)
    with caplog.at_level("WARNING", "gmd_ray"):
        fetch_weights(flight.weights)
    assert asked == ["NIMA_InceptionV2_ava-b0c77c00.pth", "niqe_modelparameters.mat"]
    assert "niqe_modelparameters.mat: gone; the metric has no value" in caplog.text
    monkeypatch.setattr(fetch, "download", lambda file, place: (_ for _ in ()).throw(fetch.FetchError("gone")))
    with pytest.raises(fetch.FetchError, match="gone"):
        fetch_weights(flight.weights)
    monkeypatch.setattr("gmd_ray.planning.models.reachable", lambda urls: dict.fromkeys(urls, False))
    assert [f.level for f in weights(tmp_path, "scorer.path=null", verb="generate")] == ["error", "error"]


def test_the_workers_of_a_cluster_may_have_them(tmp_path: Path) -> None:
    warning, _ = weights(tmp_path, "scorer.path=null", verb="generate", joins=True)
    assert (warning.level, "the workers' may have it" in warning.message) == ("warning", True)


def test_no_metric_is_left_without_weights(tmp_path: Path) -> None:
    found = Preflight(config(tmp_path, "evaluation.metrics=[niqe,musiq]"), "evaluate").run()
    [error] = found.of("error")
    assert (
        "none of them can have a value (niqe: its weights are missing; musiq: its weights are missing)" in error.message
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"", "an empty file"),
        (b"PK\x03\x04" + b"\0" * 60, "breaks off"),
        (b"<!DOCTYPE html><html>not found</html>", "a web page"),
    ],
)
def test_a_weight_file_that_is_none(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "nima.pth").write_bytes(content)
    more = ("scorer.path=null", f"scorer.weights={tmp_path / 'nima.pth'}")
    [error] = weights(tmp_path, *more, verb="generate")
    assert (error.level, words in error.message) == ("error", True)


def test_a_scorer_directory_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "scorer").mkdir()
    [error] = weights(tmp_path, f"scorer.path={tmp_path / 'scorer'}", verb="generate")
    assert (error.level, "no config.json" in error.message) == ("error", True)


def test_a_teacher_of_which_a_part_is_missing(tmp_path: Path) -> None:
    shutil.copytree(TEACHER, tmp_path / "teacher")
    (tmp_path / "teacher" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    more = (f"teacher.path={tmp_path / 'teacher'}",)
    [error] = weights(tmp_path, *more)
    assert (error.level, error.key) == ("error", "teacher.path")
    assert f"teacher.path={tmp_path / 'teacher'}: no *.safetensors in transformer/" in error.message
    assert weights(tmp_path, *more, verb="plan") == [], "its config files are enough"
    assert weights(tmp_path, *more, verb="evaluate") == [], "it has no teacher"
    [error] = weights(tmp_path, *more, "evaluation.online=true", verb="evaluate")
    assert error.key == "teacher.path"


def test_a_prompt_that_nothing_can_encode(tmp_path: Path) -> None:
    [error] = weights(tmp_path, "teacher.prompt=a photo", verb="generate")
    assert (error.key, "no text_encoder/" in error.message) == ("teacher.prompt", True)


def test_a_hub_id_without_network_is_told_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    cfg = config(tmp_path, "teacher.path=nobody/no-such-model")
    Preflight(cfg, "generate").run()  # libraries are imported by now
    start = time.monotonic()
    [error] = [f for f in Preflight(cfg, "generate").run().of("error") if f.key == "teacher.path"]
    assert time.monotonic() - start < 60  # the hub's own client would retry for 82 s
    assert (
        "nobody/no-such-model: neither a local directory nor a hub id in reach (http://127.0.0.1:9 does not answer"
        in (error.message)
    )


def test_a_factory_that_only_the_workers_have(tmp_path: Path) -> None:
    more = ("student.factory=nowhere_installed:load", f"student.path={STUDENT}")
    [error] = weights(tmp_path, *more, verb="generate")
    assert (error.code, "cannot be imported" in error.message) == ("student", True)
    assert weights(tmp_path, *more, verb="generate", joins=True) == []

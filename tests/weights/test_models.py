"""Models that lie at a URL: loaded from the node's copy, and the same as those of the original folder."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import pytest

from gmd_ray.config import Config, InjectionConfig, ScorerConfig, StudentConfig, TeacherConfig
from gmd_ray.pairstore import run_settings
from gmd_ray.quality import load_scorer, missing_weights
from gmd_ray.students import load_student, student_scale
from gmd_ray.teachers import find_prompts, load_teacher, missing_parts, teacher_licence
from gmd_ray.teachers.directory import local_directory, model_directory
from gmd_ray.training.digests import digest_of_path
from gmd_ray.training.spec import finetuned_path
from gmd_ray.weights import publish


@pytest.fixture
def toy() -> Path:
    """The models of the toy world: a teacher's and a scorer's directory, and a student's file."""
    return Path(str(resources.files("gmd_ray.demo.toy"))) / "weights"


@pytest.fixture
def store(toy: Path, tmp_path: Path) -> str:
    """The URL of a store that holds them, with checksums."""
    for name in ("teacher", "scorer", "student.safetensors"):
        publish(toy / name, f"file://{tmp_path}/store/{name}")
    return f"file://{tmp_path}/store"


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_a_student_is_the_same_at_a_url(toy: Path, store: str) -> None:
    here = StudentConfig(path=str(toy / "student.safetensors"), device="cpu")
    there = StudentConfig(path=f"{store}/student.safetensors", device="cpu")
    assert load_student(there).fingerprint == load_student(here).fingerprint
    assert student_scale(there) == student_scale(here)
    assert digest_of_path(str(there.path)) == digest_of_path(str(here.path))
    assert finetuned_path(Config(student=there, out="run"), "adapted").endswith("/finetune/adapted/student.safetensors")


def test_a_scorer_is_the_same_at_a_url(toy: Path, store: str) -> None:
    here, there = (ScorerConfig(path=path, device="cpu") for path in (str(toy / "scorer"), f"{store}/scorer"))
    assert load_scorer(there).fingerprint == load_scorer(here).fingerprint
    assert digest_of_path(str(there.path)) == digest_of_path(str(here.path))


def test_a_teacher_is_the_same_at_a_url(toy: Path, store: str) -> None:
    here, there = (
        TeacherConfig(path=path, device="cpu", injection=InjectionConfig(blocks="single"))
        for path in (str(toy / "teacher"), f"{store}/teacher")
    )
    assert load_teacher(there).fingerprint == load_teacher(here).fingerprint
    assert files(model_directory(there.path)) == files(toy / "teacher")


def test_a_check_of_a_teacher_copies_its_small_files_alone(toy: Path, store: str) -> None:
    there = TeacherConfig(path=f"{store}/teacher")
    assert missing_parts(there) == []
    assert str(teacher_licence(there)) == str(teacher_licence(TeacherConfig(path=str(toy / "teacher"))))
    assert find_prompts(there, "prompts") == there, "its table has the null prompt"
    copy = local_directory(there.path)
    assert copy is not None
    assert not [name for name in files(copy) if name.endswith(".safetensors") and "prompt" not in name]


def test_a_teacher_without_weights_at_its_url_is_named(store: str, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "teacher"
    [weights] = (folder / "transformer").glob("*.safetensors")
    weights.unlink()
    (folder / "SHA256SUMS").unlink()
    where = f"teacher.path={store}/teacher"
    assert missing_parts(TeacherConfig(path=f"{store}/teacher")) == [
        f"{where}: no *.safetensors in transformer/; other weight files are not loaded"
    ]
    assert missing_parts(TeacherConfig(path=f"{store}/gone")) == [f"teacher.path={store}/gone: no such file or folder"]


def test_a_metric_s_files_come_from_a_weights_directory_at_a_url(tmp_path: Path, node: Path) -> None:
    pytest.importorskip("pyiqa")
    weights = tmp_path / "weights" / "pyiqa"
    weights.mkdir(parents=True)
    for name in ("niqe_modelparameters.mat", "NRQM_model.mat"):
        (weights / name).write_bytes(b"mat")
    url = f"file://{tmp_path}/weights"
    assert missing_weights("niqe", None, "evaluation.weights.niqe", url) == []
    assert missing_weights("niqe", url, "scorer.weights") == []
    assert [file.name for file in node.rglob("*.mat")] == ["niqe_modelparameters.mat"]
    [entry] = missing_weights("brisque", None, "evaluation.weights.brisque", url)
    assert entry.reason == f"no pyiqa/brisque_svm_weights.pth in {url}; `gmd-ray fetch brisque --to {url}` adds it"
    assert (entry.file, entry.place) == (None, None), "nothing is downloaded into a copy"
    [entry] = missing_weights("niqe", f"{url}/gone.mat", "scorer.weights")
    assert entry.reason == f"scorer.weights={url}/gone.mat: {url}/gone.mat: no such file or folder"


def test_a_student_that_changes_at_its_url_is_seen_by_a_resumed_run(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gmd_ray.weights import cache

    cfg = Config(student=StudentConfig(path=f"{store}/student.safetensors"))
    before = run_settings.places(cfg)
    assert run_settings.moved(before, run_settings.places(cfg)) == []
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    (tmp_path / "other").write_bytes(b"another student")
    publish(tmp_path / "other", f"{store}/student.safetensors")
    monkeypatch.setattr(cache, "_listed", {})
    assert run_settings.moved(before, run_settings.places(cfg)) == ["student.path"]

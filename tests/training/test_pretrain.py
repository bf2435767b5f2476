"""Training a student on the source alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gmd_ray.config import Config
from gmd_ray.errors import ConfigError, ResumeMismatchError
from gmd_ray.students import load_student
from gmd_ray.training import finetuned_path, pretrain, refuse_begun_pretraining
from gmd_ray.training.resume import check_settings
from gmd_ray.training.run_files import read_curve
from gmd_ray.training.spec import make_spec
from tests.students.test_fresh import SWINIR
from tests.training.toys import make_config


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, str]]:
    """The arguments of the calls of `finetune`."""
    calls: list[tuple[Config, str]] = []

    def finetune(cfg: Config, name: str, recorder: Any, inputs: Any) -> None:
        calls.append((cfg, name))

    # The package exports a function of the module's name.
    monkeypatch.setattr(sys.modules["gmd_ray.training.pretrain"], "finetune", finetune)
    return calls


def test_defaults_are_the_papers_500k_iterations(tmp_path: Path, asked: list[tuple[Config, str]]) -> None:
    cfg = make_config(tmp_path)
    pretrain(cfg)
    ((used, name),) = asked
    assert name == "pretrained"
    assert (used.training.steps, used.training.lr, used.training.source_ratio) == (500_000, 2e-4, 1.0)
    assert used.training.schedule == "multistep"
    assert used.training.milestones == [250_000, 400_000, 450_000, 475_000]
    assert used.training.batch_size == cfg.training.batch_size
    assert used.student.path == cfg.student.path
    cfg.pretrain.steps, cfg.pretrain.schedule = 7, "cosine"
    pretrain(cfg)
    assert (asked[1][0].training.steps, asked[1][0].training.milestones) == (7, [])


def test_starting_points(tmp_path: Path, asked: list[tuple[Config, str]]) -> None:
    cfg = make_config(tmp_path)
    cfg.pretrain.reinitialise = True
    pretrain(cfg)
    cfg.pretrain.reinitialise, cfg.pretrain.architecture, cfg.pretrain.arguments = False, "SwinIR", SWINIR
    pretrain(cfg)
    pretrain(cfg)
    paths = [Path(str(used.student.path)) for used, _ in asked]
    assert [path.name for path in paths] == ["initial.pth"] * 3
    assert "params" in torch.load(paths[1], weights_only=True)
    cfg.pretrain.architecture, cfg.student.path = None, None
    with pytest.raises(ConfigError, match=r"pretrain\.architecture=.*student\.path="):
        pretrain(cfg)


def test_a_new_start_is_written_once(
    tmp_path: Path, asked: list[tuple[Config, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process, or another version of a library, goes on from the file that the run began with."""
    cfg = make_config(tmp_path)
    cfg.pretrain.architecture, cfg.pretrain.arguments = "SwinIR", SWINIR
    contents = []
    wider = SWINIR | {"embed_dim": 24}
    for pid, arguments, seed in ((1, SWINIR, 0), (22222, SWINIR, 0), (3, SWINIR, 5), (4, wider, 5)):
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        cfg.pretrain.arguments, cfg.seed = arguments, seed
        pretrain(cfg)
        path = Path(str(asked[-1][0].student.path))
        contents.append((path.stat().st_mtime_ns, path.read_bytes()))
    assert contents[0] == contents[1]
    assert len({content for _, content in contents}) == 3

    path.write_bytes(contents[0][1])
    path.with_name("initial.json").unlink()  # stopped between the two
    pretrain(cfg)
    assert path.read_bytes() == contents[3][1]


def test_settings_of_a_begun_training_are_refused_without_a_trace(
    tmp_path: Path, asked: list[tuple[Config, str]]
) -> None:
    cfg = make_config(tmp_path)
    cfg.pretrain.architecture, cfg.pretrain.arguments = "SwinIR", SWINIR
    refuse_begun_pretraining(cfg)
    assert not (tmp_path / "run" / "finetune").exists()
    pretrain(cfg)
    spec = make_spec(*asked[0], None)
    check_settings(spec)
    Path(spec.directory, "train").mkdir()
    Path(spec.directory, "train", "checkpoint_manager_snapshot.json").write_text("{}")
    refuse_begun_pretraining(cfg)
    cfg.pretrain.lr = 1e-3
    with pytest.raises(ResumeMismatchError, match=r"training\.lr: 0\.0002 before, 0\.001 now"):
        refuse_begun_pretraining(cfg)
    cfg.pretrain.arguments = SWINIR | {"embed_dim": 24}
    before = sorted(Path(spec.directory).rglob("*"))
    with pytest.raises(ResumeMismatchError, match=r"other initial weights .*pretrain\.arguments"):
        refuse_begun_pretraining(cfg)
    assert sorted(Path(spec.directory).rglob("*")) == before


@pytest.mark.usefixtures("in_process")
def test_from_scratch_with_no_pairs_and_no_student(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, patch=16, keep_checkpoints=3, checkpoint_every=1)
    cfg.out = str(tmp_path / "elsewhere")
    cfg.student.path = None
    cfg.pretrain.architecture, cfg.pretrain.arguments, cfg.pretrain.steps = "SwinIR", SWINIR, 5
    finished = pretrain(cfg)
    folder = tmp_path / "elsewhere" / "finetune" / "pretrained"
    assert finished.path == str(folder / "student.pth")
    assert finished.steps == 5
    before, after = (torch.load(folder / name, weights_only=True)["params"] for name in ("initial.pth", "student.pth"))
    assert before.keys() == after.keys()
    assert not torch.equal(before["conv_first.weight"], after["conv_first.weight"])
    points = read_curve(folder / "curve.jsonl")
    assert all(point["n_target"] == 0 and "loss_target" not in point for point in points)
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["training.steps"], settings["training.source_ratio"]) == (5, 1.0)
    checkpoints = sorted(path.name for path in (folder / "train").glob("step_*"))
    assert checkpoints == [f"step_{step:08d}" for step in (3, 4, 5)]

    assert pretrain(cfg) == finished  # the same start, written again, is the same start
    cfg.pretrain.arguments = SWINIR | {"embed_dim": 24}
    with pytest.raises(ResumeMismatchError, match=r"student\.path"):
        pretrain(cfg)
    cfg.student.path = finished.path  # what it is for
    assert finetuned_path(cfg, "adapted").endswith("adapted/student.pth")
    load_student(cfg.student)

"""Stage 2 of a student whose checkpoint is a directory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gmd_ray.students import load_student
from gmd_ray.students.latent.presets import new_latent_student
from gmd_ray.training import finetune, finetuned_path
from gmd_ray.training.spec import make_spec
from tests.training.toys import make_config


def test_a_directory_keeps_no_ending_and_counts_by_its_content(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    digests = []
    for seed in (0, 1):
        cfg.student.path = str(tmp_path / f"ldm-{seed}.3b")
        new_latent_student("ldm-tiny", Path(cfg.student.path), seed=seed)
        digests.append(make_spec(cfg, "adapted", None).settings()["student.path"])
    assert digests[0] != digests[1]
    assert Path(finetuned_path(cfg, "adapted")).name == "student"


@pytest.mark.usefixtures("in_process")
def test_a_latent_diffusion_student_is_finetuned(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, steps=3, checkpoint_every=3, log_every=1, patch=16)
    cfg.student.path = str(tmp_path / "ldm")
    new_latent_student("ldm-tiny", Path(cfg.student.path))
    done = finetune(cfg, "adapted")
    assert Path(done.path).is_dir()
    before, after = (load_student(cfg.student), load_student(type(cfg.student)(path=done.path, device="cpu")))
    assert before.fingerprint != after.fingerprint
    moved = [
        key
        for key, value in after.module.state_dict().items()
        if not torch.equal(value, before.module.state_dict()[key])
    ]
    assert len(moved) > 60
    assert finetune(cfg, "adapted").path == done.path  # finished: nothing is repeated

"""The scale of a student, found without loading it if possible."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray.config import StudentConfig
from gmd_ray.errors import ModelError
from gmd_ray.students import student_scale
from gmd_ray.students.fresh import new_checkpoint
from gmd_ray.students.latent.student import write_index


def test_of_a_checkpoint(tmp_path: Path) -> None:
    new_checkpoint("Compact", {"num_feat": 4, "num_conv": 1, "upscale": 3}, 0, tmp_path / "x3.pth")
    assert student_scale(StudentConfig(path=str(tmp_path / "x3.pth"), device="cuda", tile=64)) == 3, "on the CPU"


def test_of_a_latent_diffusion_directory_its_index_says_it(tmp_path: Path) -> None:
    write_index(tmp_path, 4, 2)
    assert student_scale(StudentConfig(path=str(tmp_path))) == 4, "there are no weights"
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ModelError, match="damaged, or of another kind of model"):
        student_scale(StudentConfig(path=str(tmp_path)))

"""Third-party teachers, named by import path."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from gmd_ray.config import TeacherConfig
from gmd_ray.config.load import load_config
from gmd_ray.config.requirements import require
from gmd_ray.errors import ConfigError
from gmd_ray.teachers import Teacher, find_prompts, load_teacher


class Invert:
    """A minimal Teacher: it returns the negative of an image."""

    def __init__(self, cfg: TeacherConfig) -> None:
        self.fingerprint = f"invert-{cfg.steps}"

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        return 1 - restored


class NoProject:
    fingerprint = "x"

    def __init__(self, cfg: TeacherConfig) -> None: ...


class NoFingerprint(Invert):
    def __init__(self, cfg: TeacherConfig) -> None: ...


NOT_CALLABLE = 3


def test_a_plugin_is_named_in_the_settings_and_travels_as_text() -> None:
    cfg = load_config([f"teacher.method={__name__}:Invert", "teacher.steps=7"]).teacher
    teacher = load_teacher(pickle.loads(pickle.dumps(cfg)))
    assert isinstance(teacher, Teacher)
    assert teacher.fingerprint == "invert-7"
    x = torch.rand(1, 3, 4, 4)
    assert torch.equal(teacher.project(x, ["a"]), 1 - x)
    assert find_prompts(cfg, "/nowhere") is cfg, "its prompts are its own business"


def test_a_plugin_needs_no_path(tmp_path: Path) -> None:
    base = ["target.path=s3://b/photos", "student.path=s3://b/s.pth"]
    require(load_config([*base, "teacher.method=a.b:c"]), "generate")
    with pytest.raises(ConfigError, match=r"generate needs teacher\.path"):
        require(load_config(base), "generate")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("no_such_package.x:f", "cannot import no_such_package.x (No module named 'no_such_package')"),
        (f"{__name__}:Nobody", "has no 'Nobody'"),
        (f"{__name__}:NOT_CALLABLE", "not callable"),
        (f"{__name__}:NoProject", "returned a NoProject, which is no Teacher"),
        (f"{__name__}:NoFingerprint", "returned a NoFingerprint, which is no Teacher"),
    ],
)
def test_what_is_no_teacher_is_one_line(method: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_teacher(TeacherConfig(method=method))
    line = str(caught.value)
    assert line.startswith(f"teacher.method={method}: ")
    assert message in line
    assert "\n" not in line


@pytest.mark.parametrize("method", ["sdedi", "a.b", ":f", "a:", "a b:c"])
def test_a_method_that_is_neither_name_nor_import_path(method: str) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.method"):
        load_config([f"teacher.method={method}"])

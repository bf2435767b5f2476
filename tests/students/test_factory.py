"""A team's own network by import path, and the documents' example of one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from gmd_ray.cli import main
from gmd_ray.config import StudentConfig
from gmd_ray.config.load import load_config
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.students import Student, load_student
from tests.docs.reading import example as documented


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module of docs/contributing.md in the working directory, and weights in its own layout."""
    (tmp_path / "my_restorer.py").write_text(documented("my_restorer.py"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_restorer", raising=False)
    import my_restorer

    torch.manual_seed(0)
    weights = tmp_path / "epoch_12.pt"
    torch.save({"net": my_restorer.Net().state_dict(), "epoch": 12}, weights)
    return weights


def test_the_documents_adapter_has_ten_lines() -> None:
    [adapter] = re.findall(r"^def load.*", documented("my_restorer.py"), re.MULTILINE | re.DOTALL)
    assert len(adapter.strip().splitlines()) <= 10


def test_the_documents_student_restores_trains_and_saves_in_its_own_layout(example: Path, tmp_path: Path) -> None:
    cfg = load_config([f"student.path={example}", "student.factory=my_restorer:load", "student.device=cpu"]).student
    student = load_student(cfg, "l2")
    assert isinstance(student, Student)
    image, hq = torch.rand(2, 3, 21, 30), torch.rand(2, 3, 21, 30)
    with torch.no_grad():
        expected = student.module(image).clamp(0, 1)
    torch.testing.assert_close(student.restore(image, ["a", "b"]), expected)
    loss, _ = student.training_loss(image, hq)
    torch.testing.assert_close(loss, (student.module(image) - hq).square().mean())
    loss.backward()
    torch.optim.AdamW(student.module.parameters(), lr=1e-2).step()
    student.save(tmp_path / "out" / "adapted.pt")
    tree = torch.load(tmp_path / "out" / "adapted.pt", weights_only=True)
    assert tree.keys() == {"net", "epoch"}
    assert tree["epoch"] == 12
    cfg.path = str(tmp_path / "out" / "adapted.pt")
    again = load_student(cfg)
    torch.testing.assert_close(again.restore(image), student.restore(image))
    assert again.fingerprint != load_student(StudentConfig(path=str(example), factory=cfg.factory)).fingerprint


def test_restore_takes_it(example: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.effect_noise((32, 24), 60).convert("RGB").save(tmp_path / "photo.png")
    args = ["restore", "-i", "photo.png", "-o", "out", "-m", str(example), "student.factory=my_restorer:load"]
    assert main([*args, "student.device=cpu"]) == 0
    assert Image.open(tmp_path / "out" / "photo.png").size == (32, 24)


BAD = """
def breaks(cfg): raise KeyError("net")
def nothing(cfg): return None
number = 3


def diverged(cfg):
    import torch
    from gmd_ray.students import ModuleStudent

    network = torch.nn.Conv2d(3, 3, 1)
    network.weight.data.fill_(float("nan"))
    return ModuleStudent(cfg, network)
"""


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("bad_students:breaks", ModelError, r"student\.factory=bad_students:breaks: cannot load w.pt: KeyError: 'net'"),
        ("bad_students:nothing", ModelError, "gave a NoneType, not a student"),
        ("bad_students:number", ConfigError, "not callable"),
        ("bad_students:missing", ConfigError, "no attribute 'missing'; known: breaks, diverged, nothing"),
        ("bad_students:break", ConfigError, "no attribute 'break'; did you mean 'breaks'"),
        ("breaking_students:load", ConfigError, "breaks when imported: NameError: name 'nope' is not defined"),
        ("bad_students:diverged", ModelError, r"student w\.pt: weight holds NaN or infinity"),
        ("no_such_module:load", ConfigError, "cannot be imported"),
    ],
)
def test_what_a_factory_may_get_wrong_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: type[Exception], message: str
) -> None:
    (tmp_path / "bad_students.py").write_text(BAD)
    (tmp_path / "breaking_students.py").write_text("nope")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bad_students", raising=False)
    with pytest.raises(kind, match=message) as caught:
        load_student(StudentConfig(path="w.pt", factory=name, device="cpu"))
    assert "\n" not in str(caught.value)


def test_a_name_of_another_form_is_refused_early() -> None:
    with pytest.raises(ConfigError, match=r"student\.factory=my_restorer\.load: give package\.module:function"):
        load_config(["student.factory=my_restorer.load"])


def test_a_student_made_without_save_says_so(tmp_path: Path) -> None:
    from gmd_ray.students import ModuleStudent

    student = ModuleStudent(StudentConfig(device="cpu"), torch.nn.Conv2d(3, 3, 3, padding=1))
    with pytest.raises(ModelError, match="made without save="):
        student.save(tmp_path / "x.pt")

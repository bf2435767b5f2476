"""Checkpoints of untrained students."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gmd_ray.config import StudentConfig
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.students import load_student
from gmd_ray.students.fresh import new_checkpoint, reinitialised
from tests.training.toys import write_student

SWINIR = {
    "upscale": 1, "img_size": 32, "window_size": 8, "embed_dim": 12, "depths": [1], "num_heads": [2], "mlp_ratio": 2,
    "upsampler": "", "img_range": 1.0, "resi_connection": "1conv",
}  # fmt: skip
NAFNET = {"width": 8, "enc_blk_nums": [1], "middle_blk_num": 1, "dec_blk_nums": [1]}


@pytest.mark.parametrize(("name", "arguments"), [("SwinIR", SWINIR), ("NAFNet", NAFNET)])
def test_architecture_by_name(name: str, arguments: dict[str, object], tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.pth" for i in range(3)]
    for path, seed in zip(files, (0, 0, 1), strict=True):
        torch.rand(3)  # whatever was drawn before
        new_checkpoint(name, arguments, seed, path)
    states = [torch.load(path, weights_only=True) for path in files]
    assert [*states[0]] == ["params"]
    assert all(torch.equal(states[0]["params"][key], value) for key, value in states[1]["params"].items())
    assert any(not torch.equal(states[0]["params"][key], value) for key, value in states[2]["params"].items())
    student = load_student(StudentConfig(path=str(files[0]), device="cpu"))
    assert student.restore(torch.rand(1, 3, 17, 20)).shape == (1, 3, 17, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.pth", "1.pth", "2.pth"]


def test_the_same_bytes_in_any_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run, in another process, recognises its starting checkpoint by the bytes."""
    for pid in (1, 22222):
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        new_checkpoint("SwinIR", SWINIR, 0, tmp_path / "new" / f"{pid}.pth")
        reinitialised(StudentConfig(path=str(tmp_path / "new" / "1.pth")), 3, tmp_path / "again" / f"{pid}.pth")
    for folder in ("new", "again"):
        one, other = sorted((tmp_path / folder).iterdir())
        assert one.read_bytes() == other.read_bytes()


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'SwinIR'"):
        new_checkpoint("SwinIr", {}, 0, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match=r"cannot be made with .*embed_dims"):
        new_checkpoint("SwinIR", {"embed_dims": 3}, 0, tmp_path / "a.pth")
    # Nothing in the weights says which range the network was made for.
    with pytest.raises(ModelError, match="another network"):
        new_checkpoint("SwinIR", SWINIR | {"img_range": 255.0}, 0, tmp_path / "a.pth")
    assert [*tmp_path.iterdir()] == []


def test_checkpoints_layout_with_new_weights(tmp_path: Path) -> None:
    new_checkpoint("SwinIR", SWINIR, 0, tmp_path / "given.pth")
    given = torch.load(tmp_path / "given.pth", weights_only=True)
    torch.save({"params_ema": given["params"], "iteration": 7}, tmp_path / "given.pth")
    cfg = StudentConfig(path=str(tmp_path / "given.pth"))
    for seed in (0, 5):
        reinitialised(cfg, seed, tmp_path / f"{seed}.pth")
    same, other = (torch.load(tmp_path / f"{seed}.pth", weights_only=True) for seed in (0, 5))
    assert [*same] == [*other] == ["params_ema", "iteration"]
    assert [*same["params_ema"]] == [*given["params"]]
    assert all(torch.equal(same["params_ema"][key], value) for key, value in given["params"].items())
    key = "conv_first.weight"
    assert not torch.equal(other["params_ema"][key], given["params"][key])


def test_bare_layout_with_new_weights(tmp_path: Path) -> None:
    write_student(tmp_path / "student.pth")
    cfg = StudentConfig(path=str(tmp_path / "student.pth"))
    reinitialised(cfg, 3, tmp_path / "new.pth")
    a, b = (torch.load(tmp_path / name, weights_only=True) for name in ("student.pth", "new.pth"))
    assert a.keys() == b.keys()
    assert not any(torch.equal(a[key], b[key]) for key in a if key.endswith("weight"))

"""The directory of a latent diffusion student: made, saved, damaged, and read by diffusers alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from safetensors.torch import load_file

from gmd_ray.cli import main
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.students.latent.presets import PRESETS, new_latent_student
from tests.students.latent.reference import load, parts


def test_the_large_preset_has_the_papers_size():
    with torch.device("meta"):
        network = PRESETS["ldm-1.3b"].build()
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == 1_279_602_496
    assert (network.config.in_channels, network.config.out_channels) == (32, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_in_the_layout_it_came_in(tmp_path, tiny, dtype):
    source, saved = tmp_path / "source", tmp_path / "out" / "student"
    transformer, vae = parts(tiny)
    transformer.to(dtype).save_pretrained(source / "transformer")
    vae.save_pretrained(source / "vae")
    (source / "model_index.json").write_bytes((tiny / "model_index.json").read_bytes())
    (source / "README.md").write_text("mine")
    student = load(source)
    with torch.no_grad():
        for parameter in student.module.parameters():
            parameter.add_(0.01)
    for _ in range(2):  # over an older one, too
        student.save(saved)
    files = {p.relative_to(source).as_posix(): p.read_bytes() for p in source.rglob("*") if p.is_file()}
    written = {p.relative_to(saved).as_posix(): p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    assert files.keys() == written.keys()
    assert {key for key in files if files[key] != written[key]} == {"transformer/diffusion_pytorch_model.safetensors"}
    assert [path.name for path in saved.parent.iterdir()] == ["student"]  # no draft is left
    again = SD3Transformer2DModel.from_pretrained(saved / "transformer", torch_dtype=dtype)
    stored = load_file(saved / "transformer" / "diffusion_pytorch_model.safetensors")
    assert stored.keys() == again.state_dict().keys()
    for key, value in stored.items():
        assert torch.equal(value, student.module.state_dict()[f"transformer.{key}"].to(dtype))  # type and all
        assert torch.equal(value, again.state_dict()[key])
    image = torch.rand(1, 3, 16, 16)
    tolerance = 1e-6 if dtype == torch.float32 else 0.05
    assert (load(saved).restore(image, ["a"]) - student.restore(image, ["a"])).abs().max() <= tolerance


def test_a_save_that_fails_leaves_the_student_that_was_there(tiny, tmp_path, monkeypatch):
    student, saved = load(tiny), tmp_path / "student"
    student.save(saved)
    before = {p.relative_to(saved): p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    replace = Path.replace

    def broken(self, target):
        if self.name.endswith(".tmp"):
            raise OSError("no space left")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="no space"):
        student.save(saved)
    assert {p.relative_to(saved): p.read_bytes() for p in saved.rglob("*") if p.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_fingerprint_follows_weights_and_sampling(tiny, tmp_path):
    base = load(tiny)
    new_latent_student("ldm-tiny", tmp_path / "same")
    new_latent_student("ldm-tiny", tmp_path / "other", seed=1)
    assert load(tmp_path / "same").fingerprint == base.fingerprint
    assert load(tiny, gradient_checkpointing=True).fingerprint == base.fingerprint
    others = {load(tmp_path / "other").fingerprint, load(tiny, sampling_steps=3).fingerprint}
    assert len(others | {base.fingerprint}) == 3


def test_weights_that_diverged_are_not_saved(tiny, tmp_path):
    student = load(tiny)
    with torch.no_grad():
        next(student.module.parameters())[:] = float("nan")
    with pytest.raises(ModelError, match="diverged"):
        student.save(tmp_path / "student")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "model_index.json").unlink(), "without model_index.json"),
        (lambda p: (p / "model_index.json").write_text('{"_class_name": "FluxPipeline", "scale": 1}'), "another kind"),
        (lambda p: (p / "model_index.json").write_text("{"), "damaged"),
        (lambda p: (p / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"x"), "SD3Transformer2D"),
        (lambda p: (p / "vae" / "config.json").unlink(), "AutoencoderKL"),
    ],
)
def test_a_damaged_directory_is_one_line(tiny, tmp_path, damage, message):
    path = tmp_path / "student"
    shutil.copytree(tiny, path)
    damage(path)
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_parts_that_do_not_fit_are_refused(tiny, tmp_path):
    path = tmp_path / "student"
    shutil.copytree(tiny, path)
    config = json.loads((path / "vae" / "config.json").read_text())
    AutoencoderKL.from_config({**config, "latent_channels": 8}).save_pretrained(path / "vae")
    with pytest.raises(ModelError, match="8 channels in and 4 out does not fit an autoencoder of 8"):
        load(path)


def test_new_students_are_asked_for_sensibly(tmp_path, tiny):
    with pytest.raises(ConfigError, match="did you mean 'ldm-tiny'"):
        new_latent_student("ldm-tinny", tmp_path / "x")
    with pytest.raises(ConfigError, match="--vae"):
        new_latent_student("ldm-1.3b", tmp_path / "x")
    with pytest.raises(ModelError, match="4 latent channels, this student's shape has 16"):
        new_latent_student("ldm-1.3b", tmp_path / "x", vae=tiny / "vae")
    with pytest.raises(ConfigError, match="exists already"):
        new_latent_student("ldm-tiny", tmp_path)
    assert not (tmp_path / "x").exists()


def test_the_verb_that_makes_one(tmp_path, capsys):
    assert main(["new-student", "ldm-tiny", "--to", str(tmp_path / "x"), "--scale", "2", "--steps", "3"]) == 0
    assert capsys.readouterr().out == f"ldm-tiny: 0.1 M untrained parameters in {tmp_path / 'x'}\n"
    index = json.loads((tmp_path / "x" / "model_index.json").read_text())
    assert (index["scale"], index["sampling_steps"]) == (2, 3)
    assert main(["new-student", "ldm-1.3b", "--to", str(tmp_path / "y")]) == 2
    assert "--vae" in capsys.readouterr().err

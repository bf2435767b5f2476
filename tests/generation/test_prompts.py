"""Prompts are encoded once for a run, before any replica of the teacher starts; on Ray in a task of their own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from gmd_ray.config import Config, InjectionConfig, PoolConfig, RayConfig, TeacherConfig
from gmd_ray.errors import ModelError
from gmd_ray.generation import generate
from gmd_ray.generation import run as run_module
from gmd_ray.generation.prompts import with_prompts
from gmd_ray.teachers import load_teacher
from tests.generation.world import World
from tests.teachers.conftest import make_flux
from tests.teachers.text_encoders import write_text_encoders


@pytest.fixture
def taught(tmp_path: Path) -> World:
    """Photos, and a tiny FLUX with text encoders and no table of prompts."""
    world = World(tmp_path).build(4)
    path = make_flux(tmp_path / "flux", autoencoder=False)
    (path / "prompt_embeddings.safetensors").unlink()
    write_text_encoders(path)
    world.cfg.teacher = TeacherConfig(
        path=str(path), steps=1, prompt="ab ba", max_sequence_length=7,
        injection=InjectionConfig(steps=0), pool=PoolConfig(min=2, max=2, num_cpus=0.5, batch_size=4),
    )  # fmt: skip
    return world


def test_a_run_encodes_its_prompts_and_its_replicas_need_no_encoder(
    taught: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = taught.cfg
    encoders = [Path(str(cfg.teacher.path)) / name for name in ("text_encoder", "text_encoder_2")]

    def then_hide(cfg: Config) -> Config:
        """Once the prompts are there, nobody can load an encoder any more."""
        found = with_prompts(cfg)
        for folder in encoders:
            folder.rename(taught.root / folder.name)
        return found

    fingerprint = load_teacher(cfg.teacher).fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "with_prompts", then_hide)
        assert generate(cfg).counts()["failed"] == 0
    assert {row["teacher"] for row in taught.rows().values()} == {fingerprint}, "as encoded in the process"

    # The same command again: nothing is encoded anew.
    for folder in encoders:
        (taught.root / folder.name).rename(folder)
    [file] = (Path(cfg.out) / "prompts").iterdir()
    written = file.stat().st_mtime_ns
    assert generate(cfg).counts()["failed"] == 0
    assert file.stat().st_mtime_ns == written


def test_prompts_that_cannot_be_encoded_are_one_line(taught: World) -> None:
    shutil.rmtree(Path(str(taught.cfg.teacher.path)) / "text_encoder")
    with pytest.raises(ModelError, match=r"there is no text_encoder/ to encode it with") as caught:
        generate(taught.cfg)
    assert "\n" not in str(caught.value)


def test_a_task_encodes_what_this_process_would(taught: World, ray_session: None, tmp_path: Path) -> None:
    here = with_prompts(replace(taught.cfg, out=str(tmp_path / "here"))).teacher.prompt_embeddings
    there = with_prompts(replace(taught.cfg, ray=RayConfig())).teacher.prompt_embeddings
    assert here is not None
    assert there is not None
    assert here != there
    assert Path(here).read_bytes() == Path(there).read_bytes()


def test_what_the_task_meets_is_one_line(taught: World, ray_session: None) -> None:
    cfg = replace(taught.cfg, ray=RayConfig(), teacher=replace(taught.cfg.teacher, path="nobody/flux"))
    with pytest.raises(ModelError, match=r"teacher.path=nobody/flux: neither a local directory nor a hub id") as caught:
        with_prompts(cfg)
    assert "\n" not in str(caught.value)

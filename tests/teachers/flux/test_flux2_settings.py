"""Prompts of FLUX.2, its preset, and the models and settings that are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline

from gmd_ray.config import PoolConfig
from gmd_ray.config.load import load_config
from gmd_ray.errors import ConfigError, GmdError, ModelError
from gmd_ray.teachers import encode_prompts, estimate_teacher, find_prompts, load_teacher, missing_parts
from gmd_ray.teachers.flux.families.family import FLUX1
from gmd_ray.teachers.flux.sampler import time_grid
from tests.teachers.conftest import make_flux, make_flux2
from tests.teachers.flux.test_flux2 import PROMPT, config
from tests.teachers.flux.test_teacher import ids, images
from tests.teachers.text_encoders import write_qwen3


def test_prompts_are_encoded_by_the_directorys_qwen3(flux2_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "klein"
    shutil.copytree(flux2_dir, path)
    write_qwen3(path)
    cfg = config(path, prompt="ab", max_sequence_length=40)
    assert missing_parts(cfg) == []
    assert find_prompts(cfg, str(tmp_path / "prompts")) is None
    encoded = encode_prompts(cfg, str(tmp_path / "prompts"))
    assert find_prompts(cfg, str(tmp_path / "prompts")) == encoded
    teacher = load_teacher(encoded)
    pipe = Flux2KleinPipeline.from_pretrained(path, transformer=None, vae=None)
    for text, found in (("ab", teacher.prompt), ("", teacher.inversion_prompt)):
        embeds, _ = pipe.encode_prompt(text, max_sequence_length=40)
        torch.testing.assert_close(found.embeds, embeds[0], atol=1e-5, rtol=0)
        assert len(found.pooled) == 0
        # Unlike T5's, rows do not depend on the length: a longer table begins with the shorter one.
        longer, _ = pipe.encode_prompt(text, max_sequence_length=60)
        torch.testing.assert_close(longer[0, :40], embeds[0], atol=1e-5, rtol=0)
    x = images(1, 8, 8)
    assert torch.isfinite(teacher.project(x, ids(x))).all()
    assert load_teacher(cfg).fingerprint == teacher.fingerprint
    template = path / "tokenizer" / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "painter"))
    assert find_prompts(cfg, str(tmp_path / "prompts")) is None, "another template makes other embeddings"


def test_a_handed_file_serves_a_hub_id(flux2_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "klein"
    shutil.copytree(flux2_dir, path)
    write_qwen3(path, layers=28)
    encoded = encode_prompts(config(path, prompt="b", max_sequence_length=40), str(tmp_path))
    assert find_prompts(replace(encoded, path="someone/klein"), str(tmp_path)) == replace(encoded, path="someone/klein")


def test_other_text_encoders_are_refused(flux2_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "klein"
    shutil.copytree(flux2_dir, path)
    write_qwen3(path, layers=4)
    with pytest.raises(ModelError, match=r"qwen3 with 4 layers is not supported"):
        encode_prompts(config(path, prompt="ab"), str(tmp_path))


def test_the_preset_is_enough(flux2_dir: Path) -> None:
    cfg = load_config([f"teacher.path={flux2_dir}", "teacher.preset=gmd-klein", "teacher.steps=5"]).teacher
    teacher = load_teacher(cfg)
    assert teacher.blocks == ["single_transformer_blocks.2"]  # the last of 4 blocks
    plan = teacher._plan(24)
    assert (plan.inject_steps, plan.true_cfg, plan.guidance) == (1, 4.0, None)
    assert plan.times == time_grid(5, 24, {"use_dynamic_shifting": True})
    x = images(2, 17, 22)
    assert torch.isfinite(teacher.project(x, ["a", "b"])).all()
    assert load_config([f"teacher.path={flux2_dir}", "teacher.preset=gmd"]).teacher.true_cfg is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prompt": ""}, ConfigError, r"teacher.prompt='': is the inversion's prompt too"),
        ({"prompt": "", "true_cfg": None}, ConfigError, r"teacher.preset=gmd-klein"),
        ({"inversion_prompt": PROMPT, "method": "sdedit"}, ConfigError, r"nothing would be restored"),
        ({"method": "kontext"}, GmdError, r"needs the weights of FLUX.1 Kontext"),
        ({"modulation": "host"}, ConfigError, r"share one small modulation"),
    ],
)
def test_refusals(flux2_dir: Path, change: dict, error: type[Exception], message: str) -> None:
    cfg = config(flux2_dir, **change)
    for check in (load_teacher, estimate_teacher):
        with pytest.raises(error, match=message) as caught:
            check(cfg)
        assert "\n" not in str(caught.value)


def test_a_step_distilled_model_does_not_invert(tmp_path: Path) -> None:
    path = make_flux2(tmp_path, is_distilled=True)
    with pytest.raises(ModelError, match="is_distilled: true, and its few large steps"):
        load_teacher(config(path))
    x = images(1, 8, 8)
    assert load_teacher(config(path, method="sdedit")).project(x, ["a"]).shape == x.shape


def test_chroma_is_named_as_not_supported(flux_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "chroma"
    shutil.copytree(flux_dir, path)
    file = path / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": "ChromaTransformer2DModel"}))
    for check in (load_teacher, estimate_teacher):
        with pytest.raises(ModelError, match=r"class ChromaTransformer2DModel is not supported; Chroma needs"):
            check(config(path))


def test_openflux_loads_as_flux1(tmp_path: Path) -> None:
    """OpenFLUX.1's layout: FLUX.1's classes without distilled guidance, and so with true guidance."""
    path = make_flux(tmp_path, autoencoder=True, guidance=False)
    (path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    cfg = config(path, true_cfg=3.5)
    teacher = load_teacher(cfg)
    assert teacher._files.size.family is FLUX1
    assert teacher._plan(24).guidance is None
    x = images(1, 16, 16)
    plain = load_teacher(replace(cfg, true_cfg=None)).project(x, ["a"])
    assert (teacher.project(x, ["a"]) - plain).abs().max() > 1e-3
    assert estimate_teacher(replace(cfg, pool=PoolConfig())).image(512, 512).forwards == 9

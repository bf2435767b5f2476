"""The cost of images from a teacher's config files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.teachers import estimate_teacher
from gmd_ray.teachers.cost.dimensions import Injection
from gmd_ray.teachers.cost.flops import projection_cost
from gmd_ray.teachers.cost.workload import Workload
from tests.teachers.cost.test_flops import DEV, FLUX_DEV


@pytest.fixture
def flux(tmp_path: Path) -> str:
    """FLUX.1-dev's config files, and nothing else of it."""
    for part, config in {"transformer": FLUX_DEV, "vae": {"block_out_channels": [128, 256, 512, 512]}}.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def test_an_image_costs_what_the_cost_model_says(flux: str) -> None:
    cost = estimate_teacher(TeacherConfig(path=flux)).image(720, 1280)
    late = Injection(double=0, single=18, steps=5)
    expected = projection_cost(Workload(DEV, batch=1, height=720, width=1280, text=512, steps=25, injection=late))
    assert (cost.forwards, cost.flops, cost.tiles) == (50, expected.flops, 1)
    # 65.0 TFLOP an evaluation, before what injection saves: docs/decisions.md, "Memory and cost".
    assert 0.9 * 50 * 65.0e12 < cost.flops <= 50 * 65.0e12


def test_padding(flux: str) -> None:
    teacher = estimate_teacher(TeacherConfig(path=flux))
    cost = teacher.image(497, 500)
    assert (cost.height, cost.width) == (512, 512)
    assert cost == teacher.image(512, 512)


def test_tiles(flux: str) -> None:
    teacher = estimate_teacher(TeacherConfig(path=flux, tile=1024, tile_overlap=128))
    cost, tile = teacher.image(1500, 2000), teacher.image(1024, 1024)
    assert (cost.height, cost.width, cost.tiles) == (1024, 1024, 6)
    assert (cost.forwards, cost.flops) == (6 * tile.forwards, 6 * tile.flops)
    wide = teacher.image(600, 1500)
    assert (wide.height, wide.width, wide.tiles) == (608, 1024, 2)


def test_methods_and_guidance(flux: str) -> None:
    injection = InjectionConfig(steps=0)
    plain = estimate_teacher(TeacherConfig(path=flux, injection=injection)).image(512, 512)
    guided = estimate_teacher(TeacherConfig(path=flux, injection=injection, true_cfg=2.0)).image(512, 512)
    edit = estimate_teacher(TeacherConfig(path=flux, method="sdedit")).image(512, 512)
    assert (plain.forwards, guided.forwards, edit.forwards) == (50, 75, 25)
    # Each embeds its prompt once: 512 tokens from 4096 channels to 3072.
    text = 2 * 512 * 4096 * 3072
    assert (edit.flops - text) * 2 == plain.flops - text
    kontext = estimate_teacher(TeacherConfig(path=flux, method="kontext")).image(512, 512)
    # docs/decisions.md, "Memory and cost".
    assert (kontext.forwards, kontext.flops / 25) == (25, pytest.approx(37.7e12, abs=0.06e12))


def test_the_prompt_table_is_known_by_its_header(flux: str) -> None:
    long = estimate_teacher(TeacherConfig(path=flux)).image(512, 512)
    save_file(
        {".prompt_embeds": torch.zeros(64, 8), ".pooled": torch.zeros(8)}, f"{flux}/prompt_embeddings.safetensors"
    )
    short = estimate_teacher(TeacherConfig(path=flux)).image(512, 512)
    # 21.5 TFLOP an evaluation at T = 512, 14.9 at 64: docs/decisions.md, "Memory and cost".
    assert short.flops / long.flops == pytest.approx(14.9 / 21.5, rel=0.02)


def test_a_table_of_another_length_does_not_count_beside_text_encoders(flux: str) -> None:
    save_file({".prompt_embeds": torch.zeros(64, 8)}, f"{flux}/prompt_embeddings.safetensors")
    short = estimate_teacher(TeacherConfig(path=flux)).image(512, 512)
    for folder in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        Path(flux, folder).mkdir()
        Path(flux, folder, "some.safetensors").touch()
    long = estimate_teacher(TeacherConfig(path=flux)).image(512, 512)
    assert short.flops / long.flops == pytest.approx(14.9 / 21.5, rel=0.02)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"method": "ddim"}, "method=ddim: there is no cost model for Stable Diffusion"),
        ({}, "method=inversion: there is no cost model for Stable Diffusion"),
        ({"method": "package.module:factory", "path": None}, "method=package.module:factory: .* for a plugin"),
    ],
    ids=str,
)
def test_methods_without_a_cost_model(sd_dir: Path, change: dict, what: str) -> None:
    with pytest.raises(ConfigError, match=rf"^teacher.{what}, only for FLUX's methods$"):
        estimate_teacher(TeacherConfig(**{"path": str(sd_dir), **change}))


def test_refusals(flux: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no transformer/config.json.*is enough for a plan"):
        estimate_teacher(TeacherConfig(path=str(tmp_path / "vae")))
    with pytest.raises(ModelError, match=r"owner/model: no transformer/config.json, neither"):
        estimate_teacher(TeacherConfig(path="owner/model"))
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({"sample_size": 64}))
    with pytest.raises(ModelError, match="no cost model for it"):
        estimate_teacher(TeacherConfig(path=flux))
    (tmp_path / "transformer" / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        estimate_teacher(TeacherConfig(path=flux))

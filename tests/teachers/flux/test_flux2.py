"""FLUX.2 as a member of the teacher's family: everything that FLUX.1 has, on a tiny directory in the real layout."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from torch._dynamo.utils import counters

from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.errors import ModelError
from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.acceleration.compilation import compile_blocks
from gmd_ray.teachers.acceleration.graphs import ForwardGraphs
from gmd_ray.teachers.flux.families.flux2 import InjectingFlux2
from gmd_ray.teachers.flux.projection import FluxProjector, ProjectionPlan
from gmd_ray.teachers.flux.sampler import time_grid
from tests.teachers.acceleration.replayed import TapeRecorder
from tests.teachers.flux.test_teacher import ids, images

HEIGHT, WIDTH = 12, 8
PROMPT = "a sharp photo"


def config(path: Path, **change: Any) -> TeacherConfig:
    defaults = {"path": str(path), "steps": 3, "prompt": PROMPT, "true_cfg": 3.0}
    return TeacherConfig(**{**defaults, "injection": InjectionConfig(blocks="all", steps=2), **change})


def prepare(path: Path, **change: Any) -> tuple[FluxProjector, ProjectionPlan]:
    teacher = load_teacher(config(path, **change))
    return teacher.projector, teacher._plan(HEIGHT * WIDTH // 4)


def latents(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, HEIGHT * WIDTH // 4, 16, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def test_plain_forward_equals_the_stock_model(flux2_dir: Path) -> None:
    stock = Flux2Transformer2DModel.from_pretrained(flux2_dir / "transformer").eval()
    ours = InjectingFlux2.from_pretrained(flux2_dir / "transformer").eval()
    before = {name: p.clone() for name, p in ours.named_parameters()}
    ours.use_injecting_attention()
    fused = before["single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight"]
    attn = ours.single_transformer_blocks[0].attn
    parts = [attn.to_q.weight, attn.to_k.weight, attn.to_v.weight, attn.proj_mlp.weight]
    assert torch.equal(torch.cat(parts), fused)
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1, "rows of one tensor, not copies"
    generator = torch.Generator().manual_seed(3)
    inputs = {
        "hidden_states": torch.randn(2, 24, 16, generator=generator),
        "encoder_hidden_states": torch.randn(2, 5, 24, generator=generator),
        "timestep": torch.tensor([0.1, 0.9]),
        "img_ids": ours.image_ids(12, 8),
        "txt_ids": ours.text_ids(5),
    }
    torch.testing.assert_close(ours(**inputs).sample, stock(**inputs).sample, atol=1e-5, rtol=0)


def test_positions_are_the_pipelines() -> None:
    x = torch.zeros(2, 16, 3, 5)
    assert torch.equal(InjectingFlux2.image_ids(None, 6, 10), Flux2KleinPipeline._prepare_latent_ids(x)[0].float())
    assert torch.equal(
        InjectingFlux2.text_ids(None, 4), Flux2KleinPipeline._prepare_text_ids(x[:1, 0, :1].expand(1, 4, 5))[0].float()
    )


@torch.no_grad()
def test_codec_is_the_pipelines(flux2_dir: Path) -> None:
    teacher = load_teacher(config(flux2_dir))
    vae = AutoencoderKLFlux2.from_pretrained(flux2_dir / "vae").eval()
    x = images(2, 16, 24) * 2 - 1
    patches = Flux2KleinPipeline._patchify_latents(vae.encode(x).latent_dist.mode())
    shape = (1, -1, 1, 1)
    mean, deviation = vae.bn.running_mean.view(shape), (vae.bn.running_var.view(shape) + 1e-4).sqrt()
    expected = Flux2KleinPipeline._unpatchify_latents((patches - mean) / deviation)
    torch.testing.assert_close(teacher.codec.encode(x), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        teacher.codec.decode(expected), vae.decode(vae.encode(x).latent_dist.mode()).sample, atol=1e-4, rtol=0
    )
    half = load_teacher(config(flux2_dir, dtype="bfloat16")).codec
    assert torch.equal(half._mean, teacher.codec._mean), "the statistics are not rounded"
    assert half.vae.dtype == torch.bfloat16


def test_statistics_that_were_not_loaded_are_refused(flux2_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "klein"
    shutil.copytree(flux2_dir, path)
    vae = AutoencoderKLFlux2.from_pretrained(path / "vae")
    vae.bn.reset_running_stats()
    vae.save_pretrained(path / "vae")
    with pytest.raises(ModelError, match=r"bn.running_mean is not in the weights"):
        load_teacher(config(path))


@pytest.mark.parametrize("steps", [4, 25, 28])
@pytest.mark.parametrize("tokens", [28, 1024, 4096, 4300, 4301, 8160])
def test_empirical_time_grid_equals_the_pipelines(steps: int, tokens: int) -> None:
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=compute_empirical_mu(tokens, steps))
    found = time_grid(steps, tokens, scheduler.config, kind="empirical")
    assert found == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


def test_the_schedule_is_a_setting(flux2_dir: Path, flux_dir: Path) -> None:
    """docs/method.md, "FLUX.2", has the two last steps at 512 x 512."""
    last = {}
    for schedule in ("auto", "linear", "empirical"):
        teacher = load_teacher(config(flux2_dir, schedule=schedule, steps=25))
        last[schedule] = (teacher._plan(1024).times[-2], teacher.fingerprint)
    assert last["auto"] == last["empirical"]
    assert last["empirical"][0] == pytest.approx(0.215, abs=5e-4)
    assert last["linear"][0] == pytest.approx(0.073, abs=5e-4)
    assert last["linear"][1] != last["empirical"][1]
    one, other = (load_teacher(config(flux_dir, schedule=schedule)) for schedule in ("auto", "linear"))
    assert one._plan(1024).times == other._plan(1024).times


@pytest.mark.parametrize(
    ("change", "tokens", "tensors", "blocks"),
    [
        ({}, "all", "kv", "all"),
        ({"solver": "midpoint"}, "image", "kv", "single"),
        ({"solver": "fireflow", "true_cfg": None}, "all", "v", "double"),
        ({}, "image", "v", "last:0.5"),
    ],
)
@torch.no_grad()
def test_caches_equal_stored_keys_and_values(
    flux2_dir: Path, change: dict[str, Any], tokens: str, tensors: str, blocks: str
) -> None:
    injection = InjectionConfig(blocks=blocks, tokens=tokens, tensors=tensors, steps=2)
    projector, plan = prepare(flux2_dir, injection=injection, **change)
    grid = projector.model.image_ids(HEIGHT, WIDTH)
    expected = projector(latents(), grid, plan)
    plain = projector(latents(), grid, replace(plan, inject_steps=0))
    assert (expected - plain).abs().max() > 1e-4
    for other in ({"cache": "input"}, {"cache": "lockstep"}, {"cache_location": "host", "resident": 2}):
        found = projector(latents(), grid, replace(plan, **other))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    rounded = projector(latents(), grid, replace(plan, cache_dtype="fp8"))
    assert 0 < (rounded - expected).abs().max() < 0.3


@pytest.mark.parametrize("tokens", ["all", "image"])
@torch.no_grad()
def test_what_is_replaced_is_not_projected(flux2_dir: Path, tokens: str) -> None:
    """Weights of keys and values that are replaced have no effect: here they would spoil the result."""
    injection = InjectionConfig(blocks="all", tokens=tokens, steps=2)
    projector, plan = prepare(flux2_dir, injection=injection)
    grid = projector.model.image_ids(HEIGHT, WIDTH)
    noise, kept = projector.invert(latents(), grid, plan)
    plan = replace(plan, times=plan.times[:2], inject_steps=1)
    expected = projector.reconstruct(noise, dict(kept), grid, plan)
    for name in plan.blocks:
        if tokens == "all" or not name.startswith("single"):
            for unused in ("to_k", "to_v"):
                getattr(projector.model.get_submodule(name).attn, unused).weight.fill_(torch.nan)
    assert torch.equal(projector.reconstruct(noise, dict(kept), grid, plan), expected)
    assert projector.velocity(noise, 0.5, grid, plan.prompt, None).isnan().any()


@torch.no_grad()
def test_dead_text_is_left_out_exactly(flux2_dir: Path) -> None:
    projector, plan = prepare(flux2_dir)
    z, grid = latents(), projector.model.image_ids(HEIGHT, WIDTH)
    bank = projector._buffers(z, plan)
    projector.velocity(z, 0.4, grid, plan.inversion_prompt, None, kv_out=bank)
    seen = []
    handle = projector.model.transformer_blocks[0].register_forward_pre_hook(
        lambda _, args, given: seen.append(given["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    without = projector.velocity(z, 0.7, grid, plan.prompt, None, kv_in=bank)
    handle.remove()
    assert seen == [0]
    embeds = plan.prompt.embeds
    with_text = projector.model(
        z, embeds.expand(2, -1, -1), torch.full((2,), 0.7), grid, projector.model.text_ids(len(embeds)), kv_in=bank
    ).sample
    torch.testing.assert_close(without, with_text, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(16, 24), (17, 30), (5, 3), (1, 1)])
def test_any_size_and_batch(flux2_dir: Path, size: tuple[int, int]) -> None:
    teacher = load_teacher(config(flux2_dir))
    x = images(3, *size)
    together = teacher.project(x, ids(x))
    assert together.shape == x.shape
    assert 0 <= together.min() <= together.max() <= 1
    alone = torch.cat([teacher.project(x[i : i + 1], [str(i)]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_a_tile_is_projected_as_an_image_of_its_own(flux2_dir: Path) -> None:
    teacher, whole = load_teacher(config(flux2_dir, tile=32, tile_overlap=8)), load_teacher(config(flux2_dir))
    large = images(1, 56, 40)
    out = teacher.project(large, ["a"])
    first = whole.project(large[..., :32, :32], ["a"])
    torch.testing.assert_close(out[..., :8, :8], first[..., :8, :8], atol=1e-5, rtol=0)


@pytest.mark.parametrize("change", [{"offload": "group"}, {"attention_backend": "native"}, {"cache_location": "host"}])
def test_ways_to_run_change_nothing(flux2_dir: Path, change: dict[str, Any]) -> None:
    x = images(2, 16, 24)
    plain, other = load_teacher(config(flux2_dir)), load_teacher(config(flux2_dir, **change))
    torch.testing.assert_close(other.project(x, ids(x)), plain.project(x, ids(x)), atol=1e-5, rtol=0)
    assert other.fingerprint == plain.fingerprint


def test_recorded_forwards_give_the_same_pixels(flux2_dir: Path) -> None:
    """Where there are no tables, time is what changes between the repetitions of a recording."""
    x = images(2, 16, 24)
    plain, recorded = load_teacher(config(flux2_dir)), load_teacher(config(flux2_dir))
    recorded.projector.graphs = ForwardGraphs(TapeRecorder())
    for batch in (x, x.flip(-1)):
        assert torch.equal(recorded.project(batch, ids(batch)), plain.project(batch, ids(batch)))
    assert len(recorded.projector.graphs._kept) == 3, "without a bank, writing one, reading one"


def test_sdedit(flux2_dir: Path) -> None:
    teacher = load_teacher(config(flux2_dir, method="sdedit", strength=0.5))
    x = images(2, 17, 22)
    out = teacher.project(x, ["a", "b"])
    assert torch.equal(out, teacher.project(x, ["a", "b"]))
    assert not torch.equal(out[:1], teacher.project(x[:1], ["c"]))


def test_round_trip_tends_to_the_identity_at_first_order(flux2_dir: Path) -> None:
    """Under one prompt and without injection only Euler's error is left, and it halves with the step."""
    projector, plan = prepare(flux2_dir, true_cfg=None, injection=InjectionConfig(blocks="all", steps=0))
    grid, z = projector.model.image_ids(HEIGHT, WIDTH), latents(1)
    errors = []
    for steps in (40, 80, 160):
        times = time_grid(steps, len(grid), {}, 0.5, "linear")
        with torch.no_grad():
            out = projector(z, grid, replace(plan, times=times, prompt=plan.inversion_prompt))
        errors.append((out - z).abs().mean().item())
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.25)


@pytest.mark.parametrize(
    "change", [{}, {"cache": "input", "solver": "midpoint"}, {"cache": "lockstep", "true_cfg": None}], ids=str
)
@torch.no_grad()
def test_graphs_are_counted_by_kind_not_by_step(flux2_dir: Path, change: dict[str, Any]) -> None:
    torch._dynamo.reset()
    counters.clear()
    projector, plan = prepare(flux2_dir, injection=InjectionConfig(blocks="all", tokens="image", steps=2), **change)
    grid = projector.model.image_ids(HEIGHT, WIDTH)
    first, second = latents(1), latents(1).flip(1)
    expected = [projector(z, grid, plan) for z in (first, second)]
    compile_blocks(projector.model, backend="eager")
    torch.testing.assert_close(projector(first, grid, plan), expected[0], atol=1e-5, rtol=0)
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 6, "double and single blocks each run plain, write entries, or read them"
    torch.testing.assert_close(projector(second, grid, plan), expected[1], atol=1e-5, rtol=0)
    assert counters["stats"]["unique_graphs"] == graphs
    torch._dynamo.reset()

"""Rewrites and caches that save work or memory and change nothing (docs/decisions.md, "Memory and cost")."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.cost.dimensions import FluxDimensions
from gmd_ray.teachers.cost.flops import text_flops
from gmd_ray.teachers.flux.attention import Entry
from gmd_ray.teachers.flux.blocks import select_blocks
from gmd_ray.teachers.flux.families.flux1 import InjectingFlux
from gmd_ray.teachers.flux.latents import image_ids
from gmd_ray.teachers.flux.projection import FluxProjector, InversionState, Kept, ProjectionPlan, Prompt

HEIGHT, WIDTH = 12, 8
IDS = image_ids(HEIGHT, WIDTH)
SETTINGS = [
    (blocks, tokens, tensors)
    for blocks in ("all", "single", "double")
    for tokens in ("all", "image")
    for tensors in ("kv", "v")
]


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return torch.randn(2, HEIGHT * WIDTH // 4, 48, generator=torch.Generator().manual_seed(4))


def prepare(
    path: Path, blocks: str = "all", tokens: str = "all", tensors: str = "kv", **change: object
) -> tuple[FluxProjector, ProjectionPlan]:
    injection = InjectionConfig(blocks=blocks, tokens=tokens, tensors=tensors, steps=2)
    cfg = TeacherConfig(path=str(path), steps=3, prompt="a sharp photo", injection=injection)
    teacher = load_teacher(replace(cfg, **change))  # type: ignore[arg-type]
    return teacher.projector, teacher._plan(len(IDS))


def size(kept: Kept) -> int:
    def tensors(entry: Entry) -> list[torch.Tensor]:
        return [entry] if isinstance(entry, torch.Tensor) else [x for x in entry if x is not None]

    total = 0
    for left in kept.values():
        found = [left.z] if isinstance(left, InversionState) else [x for entry in left.values() for x in tensors(entry)]
        total += sum(x.nbytes for x in found)
    return total


@pytest.mark.parametrize("change", [{}, {"true_cfg": 3.0}, {"solver": "midpoint"}, {"solver": "fireflow"}], ids=str)
@pytest.mark.parametrize(("blocks", "tokens", "tensors"), SETTINGS)
@torch.no_grad()
def test_caches_equal_stored_keys_and_values(
    flux_dir: Path, latents: torch.Tensor, change: dict, blocks: str, tokens: str, tensors: str
) -> None:
    projector, plan = prepare(flux_dir, blocks, tokens, tensors, **change)
    expected = projector(latents, IDS, plan)
    assert not torch.allclose(expected, projector(latents, IDS, replace(plan, inject_steps=0)), atol=1e-3)
    for cache in ("input", "lockstep"):
        found = projector(latents, IDS, replace(plan, cache=cache))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, msg=lambda told, cache=cache: f"{cache}: {told}")


@torch.no_grad()
def test_memory_of_the_caches(flux_dir: Path, latents: torch.Tensor) -> None:
    projector, plan = prepare(flux_dir)

    def left(plan: ProjectionPlan) -> int:
        return size(projector.invert(latents, IDS, plan)[1])

    assert left(replace(plan, cache="input")) * 2 == left(plan) > 0
    assert left(replace(plan, cache="lockstep")) == plan.inject_steps * latents.nbytes
    values = replace(plan, inject_keys=False)
    assert left(replace(values, cache="input")) == left(values)


@pytest.mark.parametrize(("blocks", "tokens", "tensors"), SETTINGS)
@torch.no_grad()
def test_what_is_replaced_is_not_projected(
    flux_dir: Path, latents: torch.Tensor, blocks: str, tokens: str, tensors: str
) -> None:
    """Weights of keys and values that are replaced have no effect: here they would spoil the result."""
    projector, plan = prepare(flux_dir, blocks, tokens, tensors)
    noise, kept = projector.invert(latents, IDS, plan)
    plan = replace(plan, times=plan.times[:2], inject_steps=1)  # one interval, which is injected
    expected = projector.reconstruct(noise, dict(kept), IDS, plan)
    spoilt = FluxProjector(copy.deepcopy(projector.model), projector.modulation)
    for name in plan.blocks:
        attention = spoilt.model.get_submodule(name).attn
        # Text and image share their projections in a single block, so the text's own keys still use them.
        if tokens == "image" and name.startswith("single"):
            continue
        for unused in ("to_k", "to_v") if tensors == "kv" else ("to_v",):
            getattr(attention, unused).weight.fill_(torch.nan)
    assert torch.equal(spoilt.reconstruct(noise, dict(kept), IDS, plan), expected)
    own = spoilt.velocity(noise, 0.5, IDS, plan.prompt, plan.guidance)
    assert bool(own.isnan().any()) == (blocks != "single" or tokens == "all")


@pytest.fixture(scope="module")
def flux_dev() -> InjectingFlux:
    """FLUX.1-dev without weights: shapes alone."""
    with torch.device("meta"):
        model = InjectingFlux(guidance_embeds=True)  # the class's defaults are FLUX.1-dev's sizes
    model.use_injecting_attention()
    return model


@pytest.mark.parametrize(
    ("blocks", "tokens", "tensors", "cache", "tera"),
    [
        ("all", "all", "kv", "kv", 12.1),
        ("all", "image", "kv", "kv", 19.3),
        ("all", "all", "kv", "input", 15.4),
        ("late_single", "all", "kv", "kv", 20.5),
        ("late_single", "all", "v", "kv", 21.0),
    ],
)
@torch.no_grad()
def test_work_of_a_replay_of_flux_dev(
    flux_dev: InjectingFlux, blocks: str, tokens: str, tensors: str, cache: str, tera: float
) -> None:
    """At 512 x 512 with 512 text tokens, where a plain forward takes 21.5 TFLOP: docs/method.md, "Injection"."""
    with torch.device("meta"):
        prompt = Prompt(torch.empty(512, 4096), torch.empty(768))
        z, ids = torch.empty(1, 1024, 64), torch.empty(1024, 3)
        plan = ProjectionPlan(
            times=[1.0, 0.0],
            inversion_prompt=prompt,
            prompt=prompt,
            inversion_guidance=1.0,
            guidance=2.0,
            true_cfg=None,
            blocks=select_blocks(flux_dev.block_names(), blocks),
            inject_keys=tensors == "kv",
            inject_text=tokens == "all",
            inject_steps=1,
            cache=cache,
        )
        projector = FluxProjector(flux_dev)
        with FlopCounterMode(display=False) as inversion:
            noise, kept = projector.invert(z, ids, plan)
        with FlopCounterMode(display=False) as reconstruction:
            projector.reconstruct(noise, kept, ids, plan)
    assert inversion.get_total_flops() / 1e12 == pytest.approx(21.5, abs=0.05)
    text = text_flops(FluxDimensions.from_config(dict(flux_dev.config)), 512)  # embedded for the inversion
    assert (reconstruction.get_total_flops() + text) / 1e12 == pytest.approx(tera, abs=0.05)


@pytest.mark.parametrize("cache", ["kv", "input"])
@torch.no_grad()
def test_dead_text_is_left_out_exactly(flux_dir: Path, latents: torch.Tensor, cache: str) -> None:
    projector, plan = prepare(flux_dir, cache=cache)
    bank = projector._buffers(latents, plan)
    projector.velocity(latents, 0.4, IDS, plan.inversion_prompt, 1.0, kv_out=bank)
    seen = []
    handle = projector.model.transformer_blocks[0].register_forward_pre_hook(
        lambda _, args, given: seen.append(given["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    without = projector.velocity(latents, 0.7, IDS, plan.prompt, 2.0, kv_in=bank)
    handle.remove()
    assert seen == [0]
    embeds, batch = plan.prompt.embeds, len(latents)
    projector.modulation.restore()
    with_text = projector.model(
        hidden_states=latents,
        encoder_hidden_states=embeds.expand(batch, -1, -1),
        pooled_projections=plan.prompt.pooled.expand(batch, -1),
        timestep=torch.full((batch,), 0.7),
        img_ids=IDS,
        txt_ids=torch.zeros(len(embeds), 3),
        guidance=torch.full((batch,), 2.0),
        kv_in=bank,
    ).sample
    torch.testing.assert_close(without, with_text, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("blocks", "tokens", "tensors"), [s for s in SETTINGS if s != ("all", "all", "kv")])
@torch.no_grad()
def test_live_text_stays(flux_dir: Path, latents: torch.Tensor, blocks: str, tokens: str, tensors: str) -> None:
    projector, plan = prepare(flux_dir, blocks, tokens, tensors)
    noise, kept = projector.invert(latents, IDS, plan)
    other = replace(plan, prompt=replace(plan.prompt, embeds=plan.prompt.embeds.flip(0) * 2))
    plan, other = (replace(p, times=p.times[:2]) for p in (plan, other))
    out = projector.reconstruct(noise, dict(kept), IDS, plan)
    assert (out - projector.reconstruct(noise, dict(kept), IDS, other)).abs().max() > 1e-5

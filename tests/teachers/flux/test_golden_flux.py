"""Results against an independent implementation: ../shared/golden/flux_a, a tiny FLUX in diffusers' layout."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gmd_ray.teachers.flux.blocks import select_blocks
from gmd_ray.teachers.flux.families.flux1 import InjectingFlux
from gmd_ray.teachers.flux.latents import image_ids, pack, unpack
from gmd_ray.teachers.flux.projection import FluxProjector, ProjectionPlan, Prompt
from gmd_ray.teachers.flux.sampler import Slot, time_grid

REFERENCE_ROUNDED_UP = (12,)
"""Frequencies of the sinusoidal embedding that the reference's fp32 exp rounded to the farther neighbour.

0.52 ulp off instead of 0.48: legal, and up to the machine's maths library (MKL or SLEEF, Intel or AMD). At guidance 5
the embedding multiplies it by 5000, which moves the velocity by 1e-4; so the reference's own frequencies are used.
"""

FLUX_SHIFT = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


class ReferenceSinusoids(torch.nn.Module):
    """(B,) times 1000 -> (B, channels): cosines, then sines, at the reference's frequencies."""

    def __init__(self, channels: int, max_period: float = 1e4) -> None:
        super().__init__()
        half = channels // 2
        exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float32) / half
        frequencies = exponents.double().exp().float()  # correctly rounded, on every machine
        for index in REFERENCE_ROUNDED_UP:
            frequencies[index] = torch.nextafter(frequencies[index], torch.tensor(torch.inf))
        self.frequencies = frequencies

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        angles = times[:, None].float() * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Golden:
    def __init__(self, folder: Path, *, pinned: bool = False) -> None:
        self.cases: dict[str, Any] = json.loads((folder / "cases.json").read_text())
        self.vectors = load_file(folder / "vectors.safetensors")
        self.model = InjectingFlux.from_config(self.cases["transformer_config"])
        self.model.load_state_dict(load_file(folder / "transformer.safetensors"), strict=True)
        self.model.use_injecting_attention()
        if pinned:
            embedding = self.model.time_text_embed
            embedding.time_proj = ReferenceSinusoids(embedding.time_proj.num_channels)
        self.model.eval().requires_grad_(False)
        self.null = Prompt(self.vectors["null_prompt_embeds"][0], self.vectors["null_pooled"][0])
        self.prompt = Prompt(self.vectors["prompt_embeds"][0], self.vectors["pooled"][0])


@pytest.fixture(scope="module")
def golden(shared_golden: Path) -> Golden:
    """The vectors with the model as it is used."""
    return Golden(shared_golden / "flux_a")


@pytest.fixture(scope="module")
def pinned(shared_golden: Path) -> Golden:
    """The vectors with the reference's frequencies, so that the machine's exp does not hide a smaller error."""
    return Golden(shared_golden / "flux_a", pinned=True)


def case_names() -> list[str]:
    return [
        f"euler_kv_{blocks}_{tokens}_inject{steps}{cfg}"
        for blocks in ("all", "late_single")
        for tokens in ("image", "all")
        for steps in (2, 5)
        for cfg in ("", "_cfg3")
    ]


def test_packing_and_positions(golden: Golden) -> None:
    latents = golden.vectors["latents"]
    packed = pack(latents)
    assert torch.equal(packed, golden.vectors["packed"])
    assert torch.equal(unpack(packed, *latents.shape[-2:]), latents)
    assert torch.equal(image_ids(*latents.shape[-2:]), golden.vectors["img_ids"])


def test_schedule(golden: Golden) -> None:
    times = time_grid(golden.cases["steps"], golden.cases["schedule_tokens"], FLUX_SHIFT)
    assert times == pytest.approx(golden.vectors["sigmas"].tolist(), abs=1e-6)


@pytest.mark.parametrize("index", range(3))
def test_velocity(golden: Golden, pinned: Golden, index: int) -> None:
    t, guidance = golden.vectors[f"velocity_{index}_t_guidance"].tolist()
    for model, atol in ((golden.model, 1e-4), (pinned.model, 1e-5)):
        v = FluxProjector(model).velocity(golden.vectors["packed"], t, golden.vectors["img_ids"], golden.null, guidance)
        torch.testing.assert_close(v, golden.vectors[f"velocity_{index}"], atol=atol, rtol=0)


@pytest.mark.parametrize("name", case_names())
def test_euler_injection(golden: Golden, name: str) -> None:
    case = next(c for c in golden.cases["cases"] if c["name"] == name)
    plan = ProjectionPlan(
        times=golden.vectors["sigmas"].tolist(),
        inversion_prompt=golden.null,
        prompt=golden.prompt,
        inversion_guidance=golden.cases["inversion"]["guidance"],
        guidance=golden.cases["reconstruction"]["guidance"],
        true_cfg=case["true_cfg"],
        blocks=select_blocks(golden.model.block_names(), case["blocks"]),
        inject_keys=True,
        inject_text=case["tokens"] == "all",
        inject_steps=case["inject_steps"],
    )
    projector = FluxProjector(golden.model)
    noise, kept = projector.invert(golden.vectors["packed"], golden.vectors["img_ids"], plan)
    torch.testing.assert_close(noise, golden.vectors["euler_noise"], atol=1e-4, rtol=0)
    assert sorted(kept) == [Slot(i, False) for i in range(case["inject_steps"])]
    out = projector.reconstruct(noise, kept, golden.vectors["img_ids"], plan)
    assert not kept, "each interval's keys and values are freed once used"
    torch.testing.assert_close(out, golden.vectors[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("inject_steps", [0, 2, 5])
@pytest.mark.parametrize("true_cfg", [None, 3.0])
def test_rf_solver(golden: Golden, inject_steps: int, true_cfg: float | None) -> None:
    """RF-Solver has no true CFG; with one prompt for both passes, its vectors hold with true CFG too."""
    reconstruction = golden.cases["reconstruction"]
    plan = ProjectionPlan(
        times=golden.vectors["sigmas"].tolist(),
        inversion_prompt=golden.null if true_cfg is None else golden.prompt,
        prompt=golden.prompt,
        inversion_guidance=golden.cases["inversion"]["guidance"],
        guidance=reconstruction["guidance"],
        true_cfg=true_cfg,
        blocks=select_blocks(golden.model.block_names(), "late_single"),
        inject_keys=False,
        inject_text=True,
        inject_steps=inject_steps,
        solver=golden.cases["rf_solver"]["solver"],
    )
    projector, img_ids = FluxProjector(golden.model), golden.vectors["img_ids"]
    null_plan = replace(plan, inversion_prompt=golden.null)
    noise, kept = projector.invert(golden.vectors["packed"], img_ids, null_plan)
    torch.testing.assert_close(noise, golden.vectors[f"rf_solver_inject{inject_steps}_noise"], atol=1e-4, rtol=0)
    assert sorted(kept) == [Slot(i, middle) for i in range(inject_steps) for middle in (False, True)]
    out = projector.reconstruct(noise, kept, img_ids, plan)
    assert not kept
    torch.testing.assert_close(out, golden.vectors[f"rf_solver_inject{inject_steps}_out"], atol=1e-4, rtol=0)


def test_every_case_is_covered(golden: Golden) -> None:
    assert sorted(c["name"] for c in golden.cases["cases"]) == sorted(case_names())
    assert golden.cases["rf_solver"]["inject_steps"] == [0, 2, 5]

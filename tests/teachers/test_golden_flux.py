"""Numbers against an independent implementation: ../shared/golden/flux_a (a tiny FLUX in diffusers keys)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gmd_ray.teachers.attention import InjectingFlux, select_blocks
from gmd_ray.teachers.latents import image_ids, pack, unpack
from gmd_ray.teachers.ode import time_grid
from gmd_ray.teachers.projection import FluxProjector, ProjectionPlan, Prompt

FLUX_SHIFT = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


class Golden:
    def __init__(self, folder: Path) -> None:
        self.cases: dict[str, Any] = json.loads((folder / "cases.json").read_text())
        self.vectors = load_file(folder / "vectors.safetensors")
        self.model = InjectingFlux.from_config(self.cases["transformer_config"])
        self.model.load_state_dict(load_file(folder / "transformer.safetensors"), strict=True)
        self.model.use_injecting_attention()
        self.model.eval().requires_grad_(False)
        self.null = Prompt(self.vectors["null_prompt_embeds"][0], self.vectors["null_pooled"][0])
        self.prompt = Prompt(self.vectors["prompt_embeds"][0], self.vectors["pooled"][0])


@pytest.fixture(scope="module")
def golden(shared_golden: Path) -> Golden:
    return Golden(shared_golden / "flux_a")


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
def test_velocity(golden: Golden, index: int) -> None:
    t, guidance = golden.vectors[f"velocity_{index}_t_guidance"].tolist()
    v = FluxProjector(golden.model).velocity(
        golden.vectors["packed"], t, golden.vectors["img_ids"], golden.null, guidance
    )
    torch.testing.assert_close(v, golden.vectors[f"velocity_{index}"], atol=1e-4, rtol=0)


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
    assert sorted(kept) == list(range(case["inject_steps"]))
    out = projector.reconstruct(noise, kept, golden.vectors["img_ids"], plan)
    assert not kept, "each interval's keys and values are freed once used"
    torch.testing.assert_close(out, golden.vectors[name], atol=1e-4, rtol=0)


def test_every_case_is_covered(golden: Golden) -> None:
    assert sorted(c["name"] for c in golden.cases["cases"]) == sorted(case_names())

"""FLUX.2 against an independent implementation: ../shared/golden/flux2_a, a tiny klein in diffusers' layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.flux.families.flux2 import InjectingFlux2
from gmd_ray.teachers.flux.latents import load_codec, pack, unpack
from gmd_ray.teachers.flux.projection import FluxProjector, ProjectionPlan, Prompt
from gmd_ray.teachers.flux.sampler import time_grid

GRID = (12, 10)
"""Height and width of the latents before packing."""


class Golden:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases: dict[str, Any] = json.loads((folder / "cases.json").read_text())
        self.vectors = load_file(folder / "vectors.safetensors")
        self.model = InjectingFlux2.from_pretrained(folder / "transformer").eval().requires_grad_(False)
        self.model.use_injecting_attention()
        none = torch.zeros(0)
        self.texts = {
            "null": Prompt(self.vectors["null_prompt_embeds"][0], none),
            "prompt": Prompt(self.vectors["prompt_embeds"][0], none),
            "none": Prompt(self.vectors["prompt_embeds"][0, :0], none),
        }

    def plan(self, case: dict[str, Any], **change: Any) -> ProjectionPlan:
        """A case of cases.json as a plan."""
        fields = {
            "times": self.vectors[f"times_{case['steps']}"].tolist(),
            "inversion_prompt": self.texts["null"],
            "prompt": self.texts[case.get("prompt", "prompt")],
            "inversion_guidance": None,
            "guidance": None,
            "true_cfg": None if case["true_cfg"] == 1 else case["true_cfg"],
            "blocks": case.get("blocks", []),
            "inject_keys": case.get("tensors") == "kv",
            "inject_text": case.get("tokens") == "all",
            "inject_steps": case.get("inject_steps", 0),
        }
        return ProjectionPlan(**{**fields, **change})


@pytest.fixture(scope="module")
def golden(shared_golden: Path) -> Golden:
    return Golden(shared_golden / "flux2_a")


def with_reference_frequencies(model: InjectingFlux2, frequencies: torch.Tensor) -> None:
    """Use the reference's sinusoids, so that an ulp of the machine's exp does not hide a smaller error."""

    def project(times: torch.Tensor) -> torch.Tensor:
        angles = times[:, None].float() * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    model.time_guidance_embed.time_proj.forward = project


def test_packing_positions_and_schedule(golden: Golden) -> None:
    vectors = golden.vectors
    latents = torch.nn.functional.pixel_shuffle(vectors["latents"], 2)
    assert torch.equal(pack(latents), vectors["packed"])
    assert torch.equal(golden.model.image_ids(*GRID), vectors["img_ids"].float())
    assert torch.equal(golden.model.text_ids(7), vectors["txt_ids"].float())
    scheduler = json.loads((golden.folder / "scheduler" / "scheduler_config.json").read_text())
    for case in golden.cases["schedules"].values():
        times = time_grid(case["steps"], case["tokens"], scheduler, kind="empirical")
        assert times == pytest.approx(case["times"], abs=1e-6)
    for steps in (4, 6):
        times = time_grid(steps, 30, scheduler, kind="empirical")
        assert times == pytest.approx(golden.vectors[f"times_{steps}"].tolist(), abs=1e-6)


@torch.no_grad()
def test_codec(golden: Golden) -> None:
    codec = load_codec(golden.folder / "vae", torch.float32, torch.device("cpu"))
    vectors = golden.vectors
    assert codec.factor == golden.cases["codec_factor"]
    latents, other = (torch.nn.functional.pixel_shuffle(vectors[name], 2) for name in ("latents", "other_latents"))
    torch.testing.assert_close(codec.encode(vectors["images"] * 2 - 1), latents, atol=1e-4, rtol=0)
    torch.testing.assert_close(codec.decode(latents), vectors["vae_decoded"], atol=1e-4, rtol=0)
    torch.testing.assert_close(codec.decode(other), vectors["vae_other_decoded"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_velocity(golden: Golden) -> None:
    vectors, ids = golden.vectors, golden.model.image_ids(*GRID)
    plain, pinned = Golden(golden.folder), Golden(golden.folder)
    with_reference_frequencies(pinned.model, vectors["time_frequencies"])
    cases = [case for case in golden.cases["cases"]["velocity"] if "guidance" not in case]
    assert len(cases) == 15
    for case in cases:
        t = case["t"]
        z = (1 - t) * vectors["packed"] + t * vectors["noise"]
        for model, atol in ((plain.model, 1e-4), (pinned.model, 1e-5)):
            v = FluxProjector(model).velocity(z, t, ids, golden.texts[case["text"]], None)
            torch.testing.assert_close(v, vectors[case["name"]], atol=atol, rtol=0, msg=case["name"])


@torch.no_grad()
def test_velocity_of_a_model_with_distilled_guidance(golden: Golden) -> None:
    model = InjectingFlux2.from_config({**golden.model.config, "guidance_embeds": True})
    weights = load_file(golden.folder / "transformer" / "diffusion_pytorch_model.safetensors")
    model.load_state_dict(weights | load_file(golden.folder / "guidance_embedder.safetensors"))
    model.use_injecting_attention()
    vectors = golden.vectors
    for case in golden.cases["cases"]["velocity"]:
        if "guidance" in case:
            t = case["t"]
            z = (1 - t) * vectors["packed"] + t * vectors["noise"]
            v = FluxProjector(model).velocity(z, t, model.image_ids(*GRID), golden.texts["prompt"], case["guidance"])
            torch.testing.assert_close(v, vectors[case["name"]], atol=1e-4, rtol=0, msg=case["name"])


@pytest.mark.parametrize("cache", ["kv", "input", "lockstep"])
@torch.no_grad()
def test_trajectories_and_injection(golden: Golden, cache: str) -> None:
    cases = golden.cases["cases"]
    wanted = [*cases["trajectory"], *cases["injection"]]
    assert len(wanted) == 6 + 50
    ids, projector = golden.model.image_ids(*GRID), FluxProjector(golden.model)
    for case in wanted:
        if cache != "kv" and not case.get("inject_steps"):
            continue
        plan = golden.plan(case, cache=cache)
        noise, kept = projector.invert(golden.vectors["packed"], ids, plan)
        torch.testing.assert_close(noise, golden.vectors[f"inverted_{case['steps']}"], atol=1e-4, rtol=0)
        out = projector.reconstruct(noise, kept, ids, plan)
        torch.testing.assert_close(out, golden.vectors[case["name"]], atol=1e-4, rtol=0, msg=case["name"])
        assert not kept, "each interval's entries are freed once used"


def test_every_vector_has_its_test(golden: Golden) -> None:
    """The names that the tests above and below compare, against those of the file."""
    cases = golden.cases["cases"]
    named = {case["name"] for case in [*cases["velocity"], *cases["trajectory"], *cases["injection"]]}
    rest = {name for name in golden.vectors if not name.startswith(("times_", "inverted_"))} - named
    assert rest == {
        "images", "img_ids", "txt_ids", "latents", "packed", "noise", "null_prompt_embeds", "prompt_embeds",
        "time_frequencies", "other_latents", "vae_mean", "vae_patchified", "vae_decoded", "vae_other_decoded",
        "vae_other_denormalised", "projected_latents", "projected_images",
    }  # fmt: skip


def test_a_directory_projects_images(golden: Golden, tmp_path: Path) -> None:
    """The whole teacher, from pixels to pixels, with the settings of the reference's own projection."""
    cfg = TeacherConfig(
        path=str(golden.folder), prompt="a photo", steps=4, true_cfg=3.0,
        injection=InjectionConfig(blocks="single", steps=2),
    )  # fmt: skip
    teacher = load_teacher(cfg)
    images = golden.vectors["images"]
    out = teacher.project(images, ["a", "b"])
    torch.testing.assert_close(out, golden.vectors["projected_images"], atol=1e-4, rtol=0)
    with torch.no_grad():
        decoded = teacher.codec.decode(unpack(golden.vectors["projected_latents"], *GRID))  # type: ignore[attr-defined]
    torch.testing.assert_close(((decoded + 1) / 2).clamp(0, 1), golden.vectors["projected_images"], atol=1e-4, rtol=0)
    # In tiles and alone the result is that of an image of its own.
    copied = tmp_path / "klein"
    shutil.copytree(golden.folder, copied)
    assert load_teacher(TeacherConfig(**{**vars(cfg), "path": str(copied)})).fingerprint == teacher.fingerprint
    alone = torch.cat([teacher.project(images[i : i + 1], [str(i)]) for i in range(2)])
    torch.testing.assert_close(alone, out, atol=1e-4, rtol=0)

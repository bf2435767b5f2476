"""FLUX.1 Kontext: token layout, the schedule, and the whole run against diffusers' own pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel

from gmd_ray.config import TeacherConfig
from gmd_ray.config.load import load_config
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.images.noise import image_noise
from gmd_ray.teachers import Teacher, load_teacher
from gmd_ray.teachers.flux.kontext import KontextTeacher
from gmd_ray.teachers.flux.latents import pack
from gmd_ray.teachers.flux.modulation import Conditioning

PROMPT = "a sharp photo"


def teacher(path: Path, **kwargs: object) -> KontextTeacher:
    settings = {"path": str(path), "steps": 3, "prompt": PROMPT, "guidance": 2.5, **kwargs}
    return KontextTeacher(TeacherConfig(**settings))  # type: ignore[arg-type]


def images(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("true_cfg", [None, 1.7])
def test_it_does_what_the_pipeline_does_at_the_images_own_size(flux_vae_dir: Path, true_cfg: float | None) -> None:
    found = teacher(flux_vae_dir, true_cfg=true_cfg)
    x = images(1, 16, 24)
    pipe = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(flux_vae_dir / "scheduler"),
        vae=AutoencoderKL.from_pretrained(flux_vae_dir / "vae"),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=FluxTransformer2DModel.from_pretrained(flux_vae_dir / "transformer"),
    )
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        # Given as latents: the pipeline would resize an image, and encode it to a sample instead of the mean.
        context = (pipe.vae.encode(x * 2 - 1).latent_dist.mean - 0.1159) * 0.3611
        expected = pipe(
            image=context,
            height=16,
            width=24,
            max_area=16 * 24,
            _auto_resize=False,
            latents=pack(image_noise("a.png", (4, 4, 6))[None]),
            prompt_embeds=found.prompt.embeds[None],
            pooled_prompt_embeds=found.prompt.pooled[None],
            negative_prompt_embeds=found.inversion_prompt.embeds[None],
            negative_pooled_prompt_embeds=found.inversion_prompt.pooled[None],
            true_cfg_scale=true_cfg or 1.0,
            guidance_scale=2.5,
            num_inference_steps=3,
            output_type="pt",
        ).images
    torch.testing.assert_close(found.project(x, ["a.png"]), expected, atol=1e-4, rtol=0)


def test_the_layout_of_the_tokens(flux_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = teacher(flux_dir, steps=1)
    calls: list[dict] = []
    forward, constants = found.model.forward, found.model.constants
    monkeypatch.setattr(found.model, "forward", lambda **kwargs: (calls.append(kwargs), forward(**kwargs))[1])
    made: list[tuple[torch.Tensor, torch.Tensor]] = []
    monkeypatch.setattr(found.model, "constants", lambda *args: (made.append(args), constants(*args))[1])
    x = images(1, 8, 12)
    out = found.project(x, ["a"])
    assert out.shape == x.shape
    [call] = calls
    # 4 x 6 latents of 12 channels are 2 x 3 tokens: at time 1 those of the noise, followed by the image's.
    z = (torch.nn.functional.pixel_unshuffle(x * 2 - 1, 2) - 0.1) * 1.6
    noise = image_noise("a", (12, 4, 6))[None]
    expected = [
        torch.stack([part[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(-1) for i in range(2) for j in range(3)])
        for part in (noise, z)
    ]
    torch.testing.assert_close(call["hidden_states"][0], torch.cat(expected), atol=1e-6, rtol=0)
    [(embeds, img_ids)] = made
    assert img_ids.tolist() == [[k, i, j] for k in range(2) for i in range(2) for j in range(3)]
    assert torch.equal(embeds, found.prompt.embeds)
    assert found.projector.modulation is not None  # time, guidance and pooled prompt come as rows of its tables
    rows = found.projector.modulation.rows(Conditioning(1.0, 2.5, found.prompt))
    assert call.get("timestep") is call.get("guidance") is None
    assert all(call["modulation"][name] is row for name, row in rows.items())
    assert all(torch.equal(a, b) for a, b in zip(call["constants"], constants(embeds, img_ids), strict=True))


def test_it_depends_on_image_and_noise_but_not_on_the_batch(flux_dir: Path) -> None:
    found = teacher(flux_dir)
    assert isinstance(found, Teacher)
    x, ids = images(3, 17, 30), ["a", "b", "c"]
    together = found.project(x, ids)
    assert together.shape == x.shape
    alone = torch.cat([found.project(x[i : i + 1], [ids[i]]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    assert (found.project(x[:1], ["b"]) - together[:1]).abs().max() > 1e-2
    assert (found.project(x[1:2], ["a"]) - together[:1]).abs().max() > 1e-3


def test_its_preset_brings_an_instruction(flux_dir: Path, tmp_path: Path) -> None:
    cfg = load_config([f"teacher.path={flux_dir}", "teacher.preset=kontext", f"teacher.prompt={PROMPT}"])
    found = load_teacher(cfg.teacher)
    assert isinstance(found, KontextTeacher)
    assert (cfg.teacher.steps, cfg.teacher.guidance) == (28, 2.5)
    assert "restore" in load_config(["teacher.preset=kontext"]).teacher.prompt
    assert found.fingerprint != teacher(flux_dir, steps=28, guidance=3.0).fingerprint
    with pytest.raises(ConfigError, match="follows an instruction"):
        teacher(flux_dir, prompt="")


def test_weights_of_another_pipeline_are_refused(flux_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "dev"
    shutil.copytree(flux_dir, path)
    (path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ModelError, match="belongs to FluxPipeline") as caught:
        teacher(path)
    assert "\n" not in str(caught.value)
    (path / "model_index.json").write_text(json.dumps({"_class_name": "FluxKontextPipeline"}))
    teacher(path)

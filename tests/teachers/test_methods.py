"""Every method of the paper by its preset, and the one that is FLUX without injection."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.config.load import load_config
from gmd_ray.teachers import Teacher, load_teacher
from gmd_ray.teachers.flux.latents import image_ids, pack, unpack
from gmd_ray.teachers.prompts import load_prompts

METHODS = {"none": "FluxTeacher", "sdedit": "SDEditTeacher", "kontext": "KontextTeacher", "ddim": "DDIMTeacher"}


def images(height: int, width: int) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("preset", METHODS)
def test_a_preset_is_enough(preset: str, flux_dir: Path, sd_dir: Path) -> None:
    path = sd_dir if preset == "ddim" else flux_dir
    prompt = ["teacher.prompt=a sharp photo"] if preset == "kontext" else []  # the tables are small
    short = ["teacher.steps=2", *(["teacher.injection.steps=1"] if preset == "ddim" else [])]
    cfg = load_config([f"teacher.path={path}", f"teacher.preset={preset}", *prompt, *short])
    teacher = load_teacher(cfg.teacher)
    assert type(teacher).__name__ == METHODS[preset]
    assert isinstance(teacher, Teacher)
    x = images(17, 22)
    out = teacher.project(x, ["a", "b"])
    assert out.shape == x.shape
    assert torch.equal(out, load_teacher(cfg.teacher).project(x, ["a", "b"])), "deterministic"


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1)])
@pytest.mark.parametrize("method", ["inversion", "sdedit", "kontext", "ddim"])
def test_the_batch_matters_by_rounding_alone(
    method: str, dtype: str, tolerance: float, flux_vae_dir: Path, sd_dir: Path
) -> None:
    """Batch shapes differ by rounding, within the bounds of the docstrings of FluxTeacher and DDIMTeacher."""
    cfg = TeacherConfig(
        path=str(sd_dir if method == "ddim" else flux_vae_dir), method=method, dtype=dtype, steps=10,
        prompt="a sharp photo", true_cfg=3.0, injection=InjectionConfig(blocks="all", steps=2),
    )  # fmt: skip
    teacher = load_teacher(cfg)
    x, ids = torch.rand(4, 3, 17, 30, generator=torch.Generator().manual_seed(1)), list("abcd")
    together = teacher.project(x, ids)
    alone = torch.cat([teacher.project(x[i : i + 1], [ids[i]]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=tolerance, rtol=0)


def test_without_injection_it_is_two_plain_passes_of_the_stock_model(flux_dir: Path) -> None:
    cfg = load_config([f"teacher.path={flux_dir}", "teacher.preset=none", "teacher.steps=3"]).teacher
    model = FluxTransformer2DModel.from_pretrained(flux_dir / "transformer").eval()
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(flux_dir / "scheduler")
    # For 6 tokens mu is on the line through (256, 0.5) and (4096, 1.15).
    scheduler.set_timesteps(sigmas=[1, 2 / 3, 1 / 3], mu=0.5 + 0.65 * (6 - 256) / (4096 - 256))
    times = scheduler.sigmas.tolist()
    null = load_prompts(cfg, flux_dir)[""].prompt

    def velocity(z: torch.Tensor, t: float, guidance: float) -> torch.Tensor:
        return model(
            hidden_states=z,
            encoder_hidden_states=null.embeds.expand(2, -1, -1),
            pooled_projections=null.pooled.expand(2, -1),
            timestep=torch.full((2,), t),
            guidance=torch.full((2,), guidance),
            img_ids=image_ids(4, 6),
            txt_ids=torch.zeros(5, 3),
        ).sample

    x = images(8, 12)
    teacher = load_teacher(cfg)
    with torch.no_grad():
        z = pack(teacher.codec.encode(x * 2 - 1))  # type: ignore[attr-defined]
        for t, then in pairwise(reversed(times)):
            z = z + (then - t) * velocity(z, t, 1.0)
        for t, then in pairwise(times):
            z = z + (then - t) * velocity(z, t, 2.0)
        expected = (teacher.codec.decode(unpack(z, 4, 6)) + 1) / 2  # type: ignore[attr-defined]
    torch.testing.assert_close(teacher.project(x, ["a", "b"]), expected.clamp(0, 1), atol=1e-5, rtol=0)

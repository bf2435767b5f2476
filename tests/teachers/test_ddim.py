"""DDIM inversion with Stable Diffusion: the formula, the injected attention, and the refused settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.config.load import load_config
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.teachers import Teacher, load_teacher
from gmd_ray.teachers.ddim import GROUPS, DDIMTeacher, select_unet_blocks

NONE = InjectionConfig(blocks="all", steps=0)
ALL = InjectionConfig(blocks="all", steps=2)


def teacher(directory: Path, **kwargs: object) -> DDIMTeacher:
    return DDIMTeacher(TeacherConfig(**{"path": str(directory), "steps": 4, "injection": NONE, **kwargs}))  # type: ignore[arg-type]


def images(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def latents(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, 8, 6, generator=torch.Generator().manual_seed(5))


def levels(steps: int) -> tuple[list[int], list[float]]:
    """Times from clean to noisy, and the signal's share abar before the first and after each (SD's own schedule)."""
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    times = [1 + i * (1000 // steps) for i in range(steps)]
    return times, [abar[0], *(abar[t] for t in times)]


Predict = Callable[[torch.Tensor, int], torch.Tensor]


def walk(z: torch.Tensor, predict: Predict, kind: str, steps: int, inverse: bool) -> torch.Tensor:
    """DDIM in the form d(z / sqrt(abar)) = eps d(sqrt(1 / abar - 1)), in float64, either way."""
    times, abar = levels(steps)
    order = range(steps) if inverse else reversed(range(steps))
    z = z.double()
    for i in order:
        now, then = (abar[i], abar[i + 1]) if inverse else (abar[i + 1], abar[i])
        eps = predict(z.float(), times[i]).double()
        if kind == "v_prediction":
            eps = now**0.5 * eps + (1 - now) ** 0.5 * z
        z = then**0.5 * (z / now**0.5 + ((1 / then - 1) ** 0.5 - (1 / now - 1) ** 0.5) * eps)
    return z


@pytest.mark.parametrize(("fixture", "kind"), [("sd_dir", "epsilon"), ("sd_v_dir", "v_prediction")])
def test_both_passes_are_the_ddim_formula(fixture: str, kind: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(fixture)
    found = teacher(path, prompt="a sharp photo", true_cfg=3.0)
    unet = UNet2DConditionModel.from_pretrained(path / "unet").eval()
    null, prompt = found.inversion_prompt.embeds[None], found.prompt.embeds[None]

    def guided(z: torch.Tensor, t: int) -> torch.Tensor:
        without = unet(z, t, null).sample
        return without + 3.0 * (unet(z, t, prompt).sample - without)

    with torch.no_grad():
        noisy, kept = found.invert(latents())
        expected = walk(latents(), lambda z, t: unet(z, t, null).sample, kind, 4, inverse=True)
        torch.testing.assert_close(noisy.double(), expected, atol=1e-4, rtol=1e-5)
        assert not kept
        clean = found.reconstruct(noisy, {})
        torch.testing.assert_close(clean.double(), walk(noisy, guided, kind, 4, inverse=False), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("fixture", ["sd_dir", "sd_v_dir"])
def test_the_round_trips_error_falls_with_the_steps(fixture: str, request: pytest.FixtureRequest) -> None:
    """Inversion to half of the times; beyond, an untrained U-Net's predictions are too rough for so few steps."""
    errors = []
    for steps in (10, 20, 40):
        found = teacher(request.getfixturevalue(fixture), steps=steps, strength=0.5)
        with torch.no_grad():
            errors.append((found.reconstruct(*found.invert(latents())) - latents()).abs().mean().item())
    assert errors[0] > 1.3 * errors[1] > 1.3 * 1.3 * errors[2] > 0


@contextmanager
def hooked(unet: UNet2DConditionModel, blocks: list[str], overrides: dict[str, torch.Tensor] | None) -> Iterator[dict]:
    """Record, or override, the outputs of to_k and to_v of these blocks' self-attention."""
    seen: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable:
        def run(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor | None:
            seen[name] = output
            return None if overrides is None else overrides[name]

        return run

    names = [f"{block}.attn1.{layer}" for block in blocks for layer in ("to_k", "to_v")]
    handles = [unet.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("blocks", ["all", "up"])
def test_injection_replaces_keys_and_values_of_equal_times(sd_dir: Path, blocks: str) -> None:
    """Injection equals the stock model with hooks on its projections, which do not use processors."""
    found = teacher(sd_dir, prompt="a sharp photo", injection=InjectionConfig(blocks=blocks, steps=2))
    names = {"all": 4, "up": 2}
    assert len(found.blocks) == names[blocks]
    unet = UNet2DConditionModel.from_pretrained(sd_dir / "unet").eval()
    times, _ = levels(4)
    bank: dict[int, dict[str, torch.Tensor]] = {}

    def inverse(z: torch.Tensor, t: int) -> torch.Tensor:
        with hooked(unet, found.blocks, None) as bank[t]:
            return unet(z, t, found.inversion_prompt.embeds[None]).sample

    def reverse(z: torch.Tensor, t: int) -> torch.Tensor:
        if t not in times[-2:]:
            return unet(z, t, found.prompt.embeds[None]).sample
        with hooked(unet, found.blocks, bank[t]):
            return unet(z, t, found.prompt.embeds[None]).sample

    with torch.no_grad():
        expected = walk(walk(latents(), inverse, "epsilon", 4, True).float(), reverse, "epsilon", 4, False)
        noisy, kept = found.invert(latents())
        assert set(kept) == set(times[-2:])
        injected = found.reconstruct(noisy, kept)
        assert not kept, "freed once used"
        plain = teacher(sd_dir, prompt="a sharp photo")
        without = plain.reconstruct(*plain.invert(latents()))
    torch.testing.assert_close(injected.double(), expected, atol=1e-4, rtol=1e-5)
    assert (injected - without).abs().max() > 1e-3


def test_the_blocks_of_stable_diffusion_2() -> None:
    """At full size, without memory: 16 self-attentions, and the parameters of the paper's 1.3B teacher.

    See docs/method.md, "Diffusion teachers".
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        )
    assert sum(p.numel() for p in unet.parameters()) == pytest.approx(865.9e6, rel=1e-4)
    assert {group: len(select_unet_blocks(unet, group)) for group in GROUPS} == {
        "all": 16,
        "down": 6,
        "mid": 1,
        "up": 9,
    }


@pytest.mark.parametrize("size", [(16, 24), (17, 30), (5, 3)])
def test_any_size_and_batch(sd_dir: Path, size: tuple[int, int]) -> None:
    found = teacher(sd_dir, injection=ALL)
    assert isinstance(found, Teacher)
    x, ids = images(3, *size), ["a", "b", "c"]
    together = found.project(x, ids)
    assert together.shape == x.shape
    assert together.dtype == torch.float32
    assert 0 <= together.min() <= together.max() <= 1
    alone = torch.cat([found.project(x[i : i + 1], [ids[i]]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    assert torch.equal(together, found.project(x, ids))


def test_a_tile_is_projected_as_an_image_of_its_own(sd_dir: Path) -> None:
    small, large = images(1, 16, 16), images(1, 40, 28)
    whole, found = teacher(sd_dir), teacher(sd_dir, tile=16, tile_overlap=8)
    assert torch.equal(found.project(small, ["a"]), whole.project(small, ["a"]))
    out = found.project(large, ["a"])
    assert out.shape == large.shape
    first = whole.project(large[..., :16, :16], ["a"])
    torch.testing.assert_close(out[..., :6, :6], first[..., :6, :6], atol=1e-5, rtol=0)


def test_strength_leaves_the_noisiest_steps_out(sd_dir: Path) -> None:
    found = teacher(sd_dir, steps=10, strength=0.4)
    assert found.times == [301, 201, 101, 1]
    x = images(1, 16, 16)
    codec = (found.codec.decode(found.codec.encode(x * 2 - 1)) + 1) / 2
    distances = [
        (teacher(sd_dir, steps=10, strength=s).project(x, ["a"]) - codec.clamp(0, 1)).abs().mean() for s in (0.1, 1.0)
    ]
    assert distances[0] < distances[1]


def test_the_directory_chooses_the_method(sd_dir: Path, flux_dir: Path) -> None:
    cfg = load_config([f"teacher.path={sd_dir}", "teacher.preset=ddim", "teacher.steps=3", "teacher.injection.steps=1"])
    by_name = load_teacher(cfg.teacher)
    assert isinstance(by_name, DDIMTeacher)
    by_kind = load_teacher(replace(cfg.teacher, method="inversion"))
    assert isinstance(by_kind, DDIMTeacher)
    assert by_kind.fingerprint == by_name.fingerprint
    with pytest.raises(ModelError, match=r"method=ddim needs unet/"):
        load_teacher(TeacherConfig(path=str(flux_dir), method="ddim"))


def test_its_fingerprint_tells_settings_apart(sd_dir: Path, sd_v_dir: Path) -> None:
    changes: list[dict] = [
        {},
        {"steps": 5},
        {"strength": 0.5},
        {"true_cfg": 2.0},
        {"prompt": "a sharp photo"},
        {"injection": ALL},
        {"injection": InjectionConfig(blocks="up", steps=2)},
        {"nudge": 1.1},
        {"tile": 16, "tile_overlap": 8},
        {"dtype": "bfloat16"},
        {"vae_tile_above": 64},
    ]
    prints = [teacher(sd_dir, **change).fingerprint for change in changes] + [teacher(sd_v_dir).fingerprint]
    assert len(set(prints)) == len(prints)
    assert teacher(sd_dir, device="cpu", guidance=7.0, cache="lockstep").fingerprint == prints[0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"injection": InjectionConfig(steps=1)}, ConfigError, "late_single: a U-Net has all, down, mid, up"),
        ({"injection": InjectionConfig(blocks=["mid"], steps=1)}, ConfigError, "no block 'mid'; known: down_bl"),
        ({"injection": InjectionConfig(blocks="all", tensors="v")}, ConfigError, "tensors=v: DDIM injects keys"),
        ({"injection": InjectionConfig(blocks="all", steps=9)}, ConfigError, "at most 4, the steps that run"),
        ({"solver": "midpoint"}, ConfigError, "solver=midpoint: DDIM has its own solver"),
        ({"injection": InjectionConfig(blocks="all", tokens="image")}, ConfigError, "tokens=image: self-attention"),
        ({"precision": "fp8"}, ConfigError, "^teacher.precision=fp8: for FLUX only; .* set it to same$"),
        ({"offload": "group"}, ConfigError, "^teacher.offload=group: for FLUX only; .* set it to none$"),
        ({"compile": True}, ConfigError, "^teacher.compile=True: for FLUX only; .* set it to false$"),
        ({"attention_backend": "flash"}, ConfigError, "attention_backend=flash: for FLUX only; .* set it to null$"),
        ({"cache_dtype": "fp8"}, ConfigError, "^teacher.cache_dtype=fp8: for FLUX only; .* set it to same$"),
        ({"host_cache_gb": 1.0}, ConfigError, "^teacher.host_cache_gb=1.0: for FLUX only; .* set it to null$"),
        ({"cache_location": "host"}, ConfigError, "cache_location=host: DDIM's cache stays on its device"),
        ({"tile": 30, "tile_overlap": 4}, ConfigError, "multiples of 4"),
        ({"prompt": "unknown"}, ModelError, "prompt 'unknown' is not in prompt_embeddings"),
        ({"path": "./nowhere"}, ModelError, "no such directory"),
    ],
)  # fmt: skip
def test_refusals(sd_dir: Path, change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        teacher(sd_dir, **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet2DModel"}, "U-Net class 'UNet2DModel'"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type; this teacher needs a text-to-image model"),
        ({"in_channels": 9}, "in_channels=9"),
    ],
)
def test_a_directory_of_another_model_is_refused(sd_dir: Path, tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "other"
    shutil.copytree(sd_dir, path)
    file = path / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ModelError, match=message):
        teacher(path)


def test_a_schedule_that_ddim_cannot_step_is_refused(sd_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "other"
    shutil.copytree(sd_dir, path)
    file = path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "timestep_spacing": "linspace"}))
    with pytest.raises(ModelError, match="timestep_spacing=linspace"):
        teacher(path)

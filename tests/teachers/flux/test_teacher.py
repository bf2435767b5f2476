"""The FLUX teacher from a directory: its results, the settings that they depend on, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel

from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.teachers import Teacher, load_teacher
from gmd_ray.teachers.flux.blocks import select_blocks
from gmd_ray.teachers.flux.families.flux1 import InjectingFlux
from gmd_ray.teachers.flux.latents import image_ids, load_codec, pack, unpack
from gmd_ray.teachers.flux.sampler import time_grid

NONE = InjectionConfig(blocks="all", steps=0)


def config(path: Path, **kwargs: object) -> TeacherConfig:
    defaults = {"path": str(path), "steps": 3, "strength": 0.5, "injection": InjectionConfig(blocks="all", steps=2)}
    return TeacherConfig(**{**defaults, **kwargs})  # type: ignore[arg-type]


def images(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def ids(x: torch.Tensor) -> list[str]:
    return [f"{i}.png" for i in range(len(x))]


def test_plain_forward_equals_the_stock_model(flux_dir: Path) -> None:
    stock = FluxTransformer2DModel.from_pretrained(flux_dir / "transformer").eval()
    ours = InjectingFlux.from_pretrained(flux_dir / "transformer").eval()
    ours.use_injecting_attention()
    generator = torch.Generator().manual_seed(3)
    inputs = {
        "hidden_states": torch.randn(2, 24, 48, generator=generator),
        "encoder_hidden_states": torch.randn(2, 5, 24, generator=generator),
        "pooled_projections": torch.randn(2, 16, generator=generator),
        "timestep": torch.tensor([0.1, 0.9]),
        "guidance": torch.tensor([1.0, 3.0]),
        "img_ids": image_ids(12, 8),
        "txt_ids": torch.zeros(5, 3),
    }
    with torch.no_grad():
        assert torch.equal(ours(**inputs).sample, stock(**inputs).sample)


def test_replaying_a_models_own_keys_and_values_changes_nothing(flux_dir: Path) -> None:
    teacher = load_teacher(config(flux_dir))
    z = pack(torch.randn(2, 12, 12, 8, generator=torch.Generator().manual_seed(4)))
    plan = teacher._plan(24)
    bank = teacher.projector._buffers(z, plan)
    with torch.no_grad():
        args = (z, 0.3, image_ids(12, 8), teacher.prompt, 2.0)
        plain = teacher.projector.velocity(*args, kv_out=bank)
        again = teacher.projector.velocity(*args, kv_in=bank)
        other = teacher.projector.velocity(args[0], 0.6, *args[2:], kv_in=bank)
    assert torch.equal(plain, again)
    assert not torch.allclose(plain, other)


def test_packing_is_the_pipelines() -> None:
    latents = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(5))
    packed = FluxPipeline._pack_latents(latents, 2, 4, 6, 10)
    assert torch.equal(pack(latents), packed)
    assert torch.equal(unpack(packed, 6, 10), latents)
    assert torch.equal(image_ids(6, 10), FluxPipeline._prepare_latent_image_ids(2, 3, 5, None, torch.float32))


@pytest.mark.parametrize(("steps", "tokens"), [(4, 256), (25, 1024), (28, 4096)])
def test_time_grid_equals_the_scheduler(steps: int, tokens: int) -> None:
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=calculate_shift(tokens))
    assert time_grid(steps, tokens, scheduler.config) == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)
    static = FlowMatchEulerDiscreteScheduler(shift=3.0)
    static.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    assert time_grid(steps, tokens, static.config) == pytest.approx(static.sigmas.tolist(), abs=1e-6)


def test_strength_starts_the_grid_below_noise() -> None:
    grid = time_grid(6, 256, {"shift": 1.0}, strength=0.6)
    assert grid == pytest.approx([0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])


def test_round_trip_tends_to_the_identity_at_first_order(flux_dir: Path) -> None:
    """With equal prompts and guidance and no injection, only Euler's error is left, and it halves with the step."""
    x = images(1, 16, 16)
    errors = []
    for steps in (20, 40, 80):
        teacher = load_teacher(config(flux_dir, steps=steps, injection=NONE, guidance=1.0))
        errors.append((teacher.project(x, ids(x)) - x).abs().mean().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.25)


def test_nudge_comes_off_again(flux_dir: Path) -> None:
    x = images(1, 16, 16)
    settings = {"steps": 40, "solver": "midpoint", "guidance": 1.0, "injection": NONE}
    plain = load_teacher(config(flux_dir, **settings)).project(x, ids(x))
    nudged = load_teacher(config(flux_dir, nudge=1.15, **settings)).project(x, ids(x))
    torch.testing.assert_close(nudged, x, atol=1e-2, rtol=0)
    assert not torch.equal(nudged, plain)


def test_true_cfg_acts_inside_its_interval_alone(flux_dir: Path) -> None:
    x = images(1, 16, 24)
    settings = {"prompt": "a sharp photo", "true_cfg": 4.0}
    times = load_teacher(config(flux_dir))._plan(24).times

    def run(low: float, high: float, **change: object) -> torch.Tensor:
        cfg = config(flux_dir, **{**settings, "true_cfg_interval": (low, high), **change})
        return load_teacher(cfg).project(x, ids(x))

    everywhere, nowhere, part = run(0, 1), run(times[0] + 0.01, 1), run(times[1], 1)
    assert torch.equal(nowhere, run(0, 1, true_cfg=None))
    assert torch.equal(everywhere, run(times[2], times[0]))
    assert (part - everywhere).abs().max() > 1e-4
    assert (part - nowhere).abs().max() > 1e-4


@pytest.mark.parametrize("solver", ["euler", "midpoint", "fireflow"])
def test_injection_of_no_count_is_injection_everywhere(flux_dir: Path, solver: str) -> None:
    x = images(1, 16, 16)
    every, counted, fewer = (
        load_teacher(config(flux_dir, solver=solver, injection=InjectionConfig(blocks="all", steps=steps)))
        for steps in (None, 3, 2)
    )
    assert every.fingerprint == counted.fingerprint
    assert torch.equal(every.project(x, ids(x)), counted.project(x, ids(x)))
    assert not torch.equal(every.project(x, ids(x)), fewer.project(x, ids(x)))


def test_true_cfg_with_equal_prompts_is_the_plain_path(flux_dir: Path) -> None:
    x = images(2, 16, 24)
    plain = load_teacher(config(flux_dir)).project(x, ids(x))
    guided = load_teacher(config(flux_dir, true_cfg=4.0)).project(x, ids(x))
    torch.testing.assert_close(guided, plain, atol=1e-5, rtol=0)
    prompted = load_teacher(config(flux_dir, true_cfg=4.0, prompt="a sharp photo")).project(x, ids(x))
    assert (prompted - plain).abs().max() > 1e-3


@pytest.mark.parametrize("fixture", ["flux_dir", "flux_vae_dir"])
@pytest.mark.parametrize("size", [(16, 24), (17, 30), (5, 3), (1, 1)])
def test_any_size_and_batch(fixture: str, size: tuple[int, int], request: pytest.FixtureRequest) -> None:
    teacher = load_teacher(config(request.getfixturevalue(fixture)))
    assert isinstance(teacher, Teacher)
    x = images(3, *size)
    together = teacher.project(x, ids(x))
    assert together.shape == x.shape
    assert together.dtype == torch.float32
    assert 0 <= together.min() <= together.max() <= 1
    alone = torch.cat([teacher.project(x[i : i + 1], [str(i)]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_a_tile_is_projected_as_an_image_of_its_own(flux_dir: Path) -> None:
    teacher = load_teacher(config(flux_dir, tile=32, tile_overlap=8))
    whole = load_teacher(config(flux_dir))
    small = images(1, 32, 32)
    assert torch.equal(teacher.project(small, ["a"]), whole.project(small, ["a"]))
    large = images(1, 80, 56)
    out = teacher.project(large, ["a"])
    assert out.shape == large.shape
    # The top left corner, outside the blended overlaps, comes from the first tile alone.
    first = whole.project(large[..., :32, :32], ["a"])
    torch.testing.assert_close(out[..., :8, :8], first[..., :8, :8], atol=1e-5, rtol=0)


def test_autoencoder_codec_is_the_posterior_mean(flux_vae_dir: Path) -> None:
    codec = load_codec(flux_vae_dir / "vae", torch.float32, torch.device("cpu"))
    vae = AutoencoderKL.from_pretrained(flux_vae_dir / "vae").eval()
    x = images(1, 16, 16) * 2 - 1
    with torch.no_grad():
        z = codec.encode(x)
        mean = vae.encode(x).latent_dist.mean
        torch.testing.assert_close(z, (mean - 0.1159) * 0.3611)
        torch.testing.assert_close(codec.decode(z), vae.decode(mean).sample, atol=1e-5, rtol=1e-5)


def test_space_to_depth_is_lossless(flux_dir: Path) -> None:
    codec = load_codec(flux_dir / "vae", torch.float32, torch.device("cpu"))
    x = images(2, 8, 12) * 2 - 1
    torch.testing.assert_close(codec.decode(codec.encode(x)), x, atol=1e-6, rtol=0)


def test_text_encoders_of_the_directory(flux_dir: Path, tmp_path: Path) -> None:
    """A prompt that the table lacks is encoded by the directory's own CLIP and T5, as the pipeline does."""
    from tests.teachers.text_encoders import write_text_encoders

    path = tmp_path / "flux"
    shutil.copytree(flux_dir, path)
    write_text_encoders(path)
    teacher = load_teacher(config(path, prompt="ab ba", max_sequence_length=7))
    pipe = FluxPipeline.from_pretrained(path, transformer=None, vae=None)
    embeds, pooled, _ = pipe.encode_prompt("ab ba", None, max_sequence_length=7)
    assert teacher.prompt.embeds.shape == (7, 24)
    torch.testing.assert_close(teacher.prompt.embeds, embeds[0])
    torch.testing.assert_close(teacher.prompt.pooled, pooled[0])
    x = images(1, 16, 16)
    assert torch.isfinite(teacher.project(x, ids(x))).all()


def test_fingerprint_tells_settings_and_weights_apart(flux_dir: Path, tmp_path: Path) -> None:
    base = config(flux_dir)
    fingerprint = load_teacher(base).fingerprint
    assert load_teacher(replace(base, device="cpu", pool=replace(base.pool, max=7))).fingerprint == fingerprint
    assert load_teacher(replace(base, cache="lockstep")).fingerprint == fingerprint
    copied = tmp_path / "copy"
    shutil.copytree(flux_dir, copied)
    assert load_teacher(replace(base, path=str(copied))).fingerprint == fingerprint
    changed = [
        replace(base, steps=4),
        replace(base, strength=0.4),
        replace(base, guidance=3.0),
        replace(base, solver="midpoint"),
        replace(base, solver="fireflow"),
        replace(base, nudge=1.1),
        replace(base, true_cfg=2.0),
        replace(base, true_cfg=2.0, true_cfg_interval=(0.5, 1.0)),
        replace(base, prompt="a sharp photo"),
        replace(base, dtype="bfloat16"),
        replace(base, injection=InjectionConfig(blocks="single", steps=2)),
        replace(base, injection=InjectionConfig(blocks="all", tensors="v", steps=2)),
    ]
    from tests.teachers.conftest import write_prompts

    write_prompts(copied, ["other", ""])
    prints = [load_teacher(cfg).fingerprint for cfg in [*changed, replace(base, path=str(copied))]]
    assert len({fingerprint, *prints}) == len(prints) + 1


def test_bfloat16_stays_near_float32(flux_dir: Path) -> None:
    x = images(1, 16, 16)
    full = load_teacher(config(flux_dir)).project(x, ids(x))
    half = load_teacher(config(flux_dir, dtype="bfloat16")).project(x, ids(x))
    assert 0 < (full - half).abs().mean() < 0.05


def test_select_blocks() -> None:
    names = ["transformer_blocks.0", *(f"single_transformer_blocks.{i}" for i in range(22))]
    assert select_blocks(names, "late_single") == names[-2:]
    assert select_blocks(names, "double") == names[:1]
    assert len(select_blocks(names, "all")) == 23
    with pytest.raises(ConfigError, match="did you mean 'single'"):
        select_blocks(names, "singel")
    with pytest.raises(ConfigError, match=r"did you mean 'transformer_blocks.0'"):
        select_blocks(names, ["transformer_block.0"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"path": None}, ConfigError, "teacher.path: give"),
        ({"path": "./nowhere"}, ModelError, "no such directory"),
        ({"prompt": "unknown"}, ModelError, "is not in prompt_embeddings"),
        ({"tile": 30, "tile_overlap": 4}, ConfigError, "multiples of 4"),
        ({"injection": InjectionConfig(blocks="late_single", steps=1)}, ConfigError, "has 2 single blocks"),
        ({"injection": InjectionConfig(blocks="all", steps=9)}, ConfigError, "at most teacher.steps=3"),
    ],
)
def test_refusals(flux_dir: Path, change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        load_teacher(replace(config(flux_dir), **change))
    assert "\n" not in str(caught.value)


def test_a_directory_of_another_model_is_refused(flux_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "other"
    shutil.copytree(flux_dir, path)
    file = path / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": "SD3Transformer2DModel"}))
    with pytest.raises(ModelError, match="SD3Transformer2DModel"):
        load_teacher(config(path))
    shutil.rmtree(path / "transformer")
    with pytest.raises(ModelError, match=r"no config.json"):
        load_teacher(config(path))

"""Offloading, 8-bit weights and attention kernels, as far as they run on a CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from gmd_ray.errors import ConfigError
from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.acceleration import prepare
from gmd_ray.teachers.flux.latents import AutoencoderCodec
from tests.teachers.flux.test_teacher import config, ids, images


def test_group_offload_changes_nothing(flux_dir: Path) -> None:
    """Results with diffusers' offloading hooks, here from the CPU to the CPU."""
    x = images(2, 16, 24)
    plain = load_teacher(config(flux_dir))
    teacher = load_teacher(config(flux_dir, offload="group"))
    hooked = [block for block in teacher.model._blocks() if hasattr(block, "_diffusers_hook")]
    assert len(hooked) == 3
    assert torch.equal(teacher.project(x, ids(x)), plain.project(x, ids(x)))
    assert teacher.fingerprint == plain.fingerprint


@pytest.mark.gpu
def test_group_offload_on_a_gpu(flux_dir: Path) -> None:
    x = images(2, 16, 24)
    settings = config(flux_dir, device="cuda", dtype="float32", cache_location="host")
    plain, teacher = load_teacher(settings), load_teacher(replace(settings, offload="group"))
    assert {p.device.type for p in teacher.model._blocks()[1].parameters()} == {"cpu"}
    torch.testing.assert_close(teacher.project(x, ids(x)), plain.project(x, ids(x)), atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("solver", ["euler", "midpoint"])
def test_the_host_cache_on_a_gpu(flux_dir: Path, solver: str) -> None:
    """Pinned memory and copies on a stream of their own."""
    x = images(2, 64, 64)
    settings = config(flux_dir, device="cuda", solver=solver, steps=8)
    settings.injection.steps = None
    device, host = (load_teacher(replace(settings, cache_location=where)) for where in ("device", "host"))
    assert torch.equal(device.project(x, ids(x)), host.project(x, ids(x)))


def test_kernels_are_checked_where_they_are_used(
    flux_dir: Path, flux2_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check compiles a function of its own. FLUX.2's blocks have no norm for the kernel of adaptive norms."""
    checked: list[str] = []
    for name in ("trustworthy", "trustworthy_norm"):
        monkeypatch.setattr(prepare, name, lambda *_, name=name, **__: checked.append(name) is not None)
    flux2 = {"prompt": "a sharp photo", "true_cfg": 2.0}
    for path, change, expected in (
        (flux_dir, {}, ["trustworthy_norm", "trustworthy"]),
        (flux2_dir, flux2, ["trustworthy"]),
    ):
        teacher = load_teacher(config(path, **change))
        checked.clear()
        prepare.fuse(teacher.model, torch.device("cpu"), compiled=True)
        assert checked == expected


def test_an_attention_backend(flux_dir: Path) -> None:
    x = images(1, 16, 24)
    plain, teacher = (load_teacher(config(flux_dir, attention_backend=b)) for b in (None, "_native_math"))
    assert teacher.model.transformer_blocks[0].attn.processor._attention_backend == "_native_math"
    torch.testing.assert_close(teacher.project(x, ids(x)), plain.project(x, ids(x)), atol=1e-5, rtol=0)
    teacher.model.set_attention_backend("native")  # diffusers keeps the last one for other models too


@pytest.mark.parametrize(
    ("name", "message"),
    [("_native_cudn", "did you mean '_native_cudnn'"), ("flash", "not available here"), ("sage", "known: ")],
)
def test_attention_that_is_not_there(flux_dir: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_teacher(config(flux_dir, attention_backend=name))
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_the_autoencoder_takes_one_image_at_a_time_and_tiles_large_ones(flux_vae_dir: Path) -> None:
    vae = AutoencoderKL.from_pretrained(flux_vae_dir / "vae").eval()
    x = images(3, 48, 64) * 2 - 1
    mean = vae.encode(x).latent_dist.mode()
    whole = vae.decode(mean).sample
    codec = AutoencoderCodec(vae, tile_above=48 * 64)
    seen: list[int] = []
    vae.decoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    z = codec.encode(x)
    torch.testing.assert_close(z, (mean - vae.config.shift_factor) * vae.config.scaling_factor, atol=1e-5, rtol=0)
    torch.testing.assert_close(codec.decode(z), whole, atol=1e-4, rtol=0)
    assert seen == [1, 1, 1]
    tiles = AutoencoderCodec(vae, tile_above=48 * 64 - 1)
    assert (tiles.decode(z) - whole).abs().max() > 1e-4
    assert len(seen) > 6
    alone = torch.cat([tiles.decode(z[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(tiles.decode(z), alone, atol=1e-5, rtol=0)

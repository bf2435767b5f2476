"""Tiny FLUX directories of the real classes, in the real layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

TEXT_DIM, POOLED_DIM = 24, 16


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights instead of the initial zeros and ones, which would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.1 + (1.0 if parameter.ndim == 1 and "norm" in str(parameter) else 0.0))
    return model


def write_prompts(path: Path, prompts: list[str]) -> None:
    generator = torch.Generator().manual_seed(9)
    table = {}
    for prompt in prompts:
        table[f"{prompt}.prompt_embeds"] = torch.randn(5, TEXT_DIM, generator=generator)
        table[f"{prompt}.pooled"] = torch.randn(POOLED_DIM, generator=generator)
    save_file(table, path / "prompt_embeddings.safetensors")


def make_flux(path: Path, *, autoencoder: bool, guidance: bool = True) -> Path:
    """A FLUX directory: space-to-depth codec, or a real AutoencoderKL of downscale 4."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    from gmd_ray.teachers.flux.latents import SpaceToDepthCodec

    channels = 4 if autoencoder else 12
    transformer = FluxTransformer2DModel(
        in_channels=channels * 4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_DIM,
        pooled_projection_dim=POOLED_DIM,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    randomise(transformer, 1).save_pretrained(path / "transformer")
    if autoencoder:
        torch.manual_seed(2)
        AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            block_out_channels=[8, 8, 8],
            norm_num_groups=4,
            latent_channels=channels,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        ).save_pretrained(path / "vae")
    else:
        SpaceToDepthCodec(2, shift=0.1, scale=1.6).save_pretrained(path / "vae")
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(path / "scheduler")
    write_prompts(path, ["", "a sharp photo"])
    return path


def make_flux2(path: Path, **index: object) -> Path:
    """A directory of FLUX.2 [klein]: a real AutoencoderKLFlux2 of downscale 2 with statistics, and no guidance."""
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_DIM,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    randomise(transformer, 1).save_pretrained(path / "transformer")
    torch.manual_seed(2)
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
    )
    generator = torch.Generator().manual_seed(5)
    vae.bn.running_mean.copy_(torch.randn(16, generator=generator) * 0.1)
    vae.bn.running_var.copy_(0.5 + torch.rand(16, generator=generator))
    vae.save_pretrained(path / "vae")
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0).save_pretrained(path / "scheduler")
    prompts = {
        f"{p}.prompt_embeds": torch.randn(5, TEXT_DIM, generator=generator)
        for p in ("", "a sharp photo", "a sharp, detailed, high-quality photograph")
    }
    save_file(prompts, path / "prompt_embeddings.safetensors")
    parts = {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        "transformer": ["diffusers", "Flux2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
    }
    (path / "model_index.json").write_text(json.dumps({"_class_name": "Flux2KleinPipeline", **parts, **index}))
    return path


def make_sd(path: Path, *, prediction: str = "epsilon", **scheduler: object) -> Path:
    """A Stable Diffusion directory: a U-Net of two resolutions, an AutoencoderKL of downscale 2, SD 2.x's scheduler."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel

    torch.manual_seed(3)
    UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_DIM,
        attention_head_dim=(2, 4),
        norm_num_groups=4,
        use_linear_projection=True,
    ).save_pretrained(path / "unet")
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 8],
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.18215,
    ).save_pretrained(path / "vae")
    # The published directories have a PNDM scheduler whose config does not mention clipping.
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        prediction_type=prediction,
        **scheduler,
    ).save_pretrained(path / "scheduler")
    generator = torch.Generator().manual_seed(8)
    prompts = {f"{p}.prompt_embeds": torch.randn(7, TEXT_DIM, generator=generator) for p in ("", "a sharp photo")}
    save_file(prompts, path / "prompt_embeddings.safetensors")
    return path


@pytest.fixture(scope="session")
def sd_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="session")
def sd_v_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion directory with velocity prediction."""
    return make_sd(tmp_path_factory.mktemp("sd_v"), prediction="v_prediction")


@pytest.fixture(scope="session")
def flux_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_flux(tmp_path_factory.mktemp("flux"), autoencoder=False)


@pytest.fixture(scope="session")
def flux2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_flux2(tmp_path_factory.mktemp("flux2"))


@pytest.fixture(scope="session")
def flux_vae_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_flux(tmp_path_factory.mktemp("flux_vae"), autoencoder=True)

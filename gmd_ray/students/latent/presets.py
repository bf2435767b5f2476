"""Presets of latent diffusion students, and the creation of untrained ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gmd_ray.errors import ConfigError, ModelError, nearest
from gmd_ray.students.latent.student import write_index

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SD3Transformer2DModel


@dataclass(frozen=True)
class LatentShape:
    """Dimensions of an `SD3Transformer2DModel`. The text dimensions are small, as no text is used."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    latent_channels: int
    pos_embed_max_size: int
    """Number of patches per side with a position; a patch is 2 latents, or 16 pixels with the usual autoencoders."""
    joint_attention_dim: int = 64
    pooled_projection_dim: int = 64

    def build(self) -> SD3Transformer2DModel:
        """Build a random network on torch's default device (which may be `meta`)."""
        from diffusers import SD3Transformer2DModel

        fields = asdict(self)
        channels = fields.pop("latent_channels")
        return SD3Transformer2DModel(
            **fields,
            in_channels=2 * channels,
            out_channels=channels,
            caption_projection_dim=self.num_attention_heads * self.attention_head_dim,
            patch_size=2,
            qk_norm="rms_norm",
            sample_size=self.pos_embed_max_size,
        )


PRESETS: dict[str, LatentShape] = {
    # 1.28 billion parameters and at most 1536 pixels per side. The paper states the number of parameters and "MMDiT"
    # only, so the shape is our choice.
    "ldm-1.3b": LatentShape(27, 18, 64, 16, 96),
    # For tests and dry runs. At most 1024 pixels per side with its autoencoder of factor 8.
    "ldm-tiny": LatentShape(2, 4, 8, 4, 64),
}


def new_latent_student(
    name: str, path: Path, vae: Path | None = None, scale: int = 1, steps: int = 4, seed: int = 0
) -> int:
    """Make an untrained student of a named shape, for `pretrain`.

    Args:
        name: one of `PRESETS`.
        path: the directory to make.
        vae: directory of a trained `AutoencoderKL` in the diffusers layout, with the shape's number of latent channels.
            None makes a random autoencoder, which serves tests and dry runs only; only `ldm-tiny` allows it.
        scale: output side divided by input side.
        steps: number of sampling steps written to the index, the default of the student.
        seed: seed of the random weights.

    Returns:
        the number of trainable parameters.

    Raises:
        ConfigError: the preset is unknown, the directory exists, or the autoencoder is missing.
        ModelError: the autoencoder cannot be loaded, or has another number of latent channels.
    """
    if name not in PRESETS:
        raise ConfigError(f"student preset {name!r}: {nearest(name, PRESETS)}")
    if path.exists():
        raise ConfigError(f"{path}: exists already; give another place")
    if vae is None and name != "ldm-tiny":
        raise ConfigError(f"{name} needs a trained autoencoder: --vae DIR, a diffusers AutoencoderKL of 16 channels")
    shape = PRESETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        codec = _tiny_vae(shape.latent_channels) if vae is None else _load_vae(vae, shape.latent_channels)
        transformer = shape.build()
    transformer.save_pretrained(path / "transformer")
    codec.save_pretrained(path / "vae")
    write_index(path, scale, steps)  # written last, so that a directory with an index is complete
    return sum(parameter.numel() for parameter in transformer.parameters())


def _tiny_vae(channels: int) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def _load_vae(path: Path, channels: int) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    try:
        vae = AutoencoderKL.from_pretrained(path, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: cannot be loaded as AutoencoderKL ({str(error).splitlines()[0]})") from error
    if vae.config.latent_channels != channels:
        raise ModelError(f"{path}: {vae.config.latent_channels} latent channels, this student's shape has {channels}")
    return vae

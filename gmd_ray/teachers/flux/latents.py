"""Images to FLUX tokens and back: autoencoders, 2x2 packing, position ids.

See docs/method.md, "Latents, color and tiles".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn import functional as F

from gmd_ray.errors import ModelError
from gmd_ray.teachers.acceleration.group_norm import speed_up_autoencoder, trustworthy_group_norm

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderKLFlux2


class Codec(Protocol):
    """An autoencoder, frozen: both directions are deterministic."""

    factor: int
    """Pixels that one latent stands for, along a side."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32 pixels in [-1, 1], (B, 3, H, W) -> normalised latents (B, C, H / factor, W / factor), float32."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `encode`, up to the autoencoder's loss; pixels are not clamped."""
        ...


class SpaceToDepthCodec:
    """A lossless stand-in for an autoencoder: `factor` x `factor` blocks become channels, then an affine map follows.

    It is stored as `vae/config.json` with `_class_name: SpaceToDepthCodec`, in the place of a directory's autoencoder.
    """

    def __init__(self, factor: int, shift: float, scale: float) -> None:
        self.factor, self.shift, self.scale = factor, shift, scale

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return (F.pixel_unshuffle(pixels, self.factor) - self.shift) * self.scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(latents / self.scale + self.shift, self.factor)

    def save_pretrained(self, path: str | Path) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        config = {
            "_class_name": "SpaceToDepthCodec",
            "factor": self.factor,
            "shift_factor": self.shift,
            "scaling_factor": self.scale,
        }
        (Path(path) / "config.json").write_text(json.dumps(config, indent=2) + "\n")


class AutoencoderCodec:
    """A frozen `AutoencoderKL`. It encodes to the mean of the posterior, so that the projection draws no noise.

    Images pass one at a time: the autoencoder's share of the work is small, and its activations are the largest of the
    whole teacher.
    """

    def __init__(self, vae: AutoencoderKL | AutoencoderKLFlux2, tile_above: int | None = None) -> None:
        """
        Args:
            tile_above: images of more pixels than this pass in the autoencoder's own tiles, whose seams it blends. The
                choice depends on the size alone, so that results do not depend on the memory at hand. None never
                tiles.
        """
        self.vae, self.tile_above = vae, tile_above
        vae.enable_slicing()
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        self._choose_tiling(pixels.shape[-2] * pixels.shape[-1])
        mean = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode()
        return self._normalise(mean.float())

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self._choose_tiling(latents.shape[-2] * latents.shape[-1] * self.factor**2)
        return self.vae.decode(self._denormalise(latents).to(self.vae.dtype)).sample.float()

    def _normalise(self, mean: torch.Tensor) -> torch.Tensor:
        """The posterior's mean (B, C, h, w), float32, to what the flow works on."""
        return (mean - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor

    def _denormalise(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `_normalise`."""
        return latents / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)

    def _choose_tiling(self, pixels: int) -> None:
        if self.tile_above is not None and pixels > self.tile_above:
            self.vae.enable_tiling()
        else:
            self.vae.disable_tiling()


class PatchNormCodec(AutoencoderCodec):
    """A frozen `AutoencoderKLFlux2`, whose latents are normalised in patches of 2 x 2, each with statistics of its own.

    The statistics are those of a batch norm that is never run. They stay in float32 whatever the autoencoder computes
    in. The normalised patches are handed back as latents (B, C, h, w), so packing is that of every other codec.
    """

    def __init__(self, vae: AutoencoderKLFlux2, tile_above: int | None = None) -> None:
        """
        Args:
            vae: in float32; the caller may cast it afterwards.
            tile_above: see `AutoencoderCodec`.
        """
        super().__init__(vae, tile_above)
        mean, variance = (x.detach().clone().view(-1, 1, 1) for x in (vae.bn.running_mean, vae.bn.running_var))
        self._mean, self._deviation = mean, (variance + vae.config.batch_norm_eps).sqrt()

    def _normalise(self, mean: torch.Tensor) -> torch.Tensor:
        # (B, C, h, w) -> (B, 4 C, h/2, w/2), in the order (channel, row, column).
        patches = F.pixel_unshuffle(mean, 2)
        return F.pixel_shuffle((patches - self._mean.to(mean.device)) / self._deviation.to(mean.device), 2)

    def _denormalise(self, latents: torch.Tensor) -> torch.Tensor:
        patches = F.pixel_unshuffle(latents, 2)
        return F.pixel_shuffle(patches * self._deviation.to(latents.device) + self._mean.to(latents.device), 2)


def load_codec(path: Path, dtype: torch.dtype, device: torch.device, tile_above: int | None = None) -> Codec:
    """Load the autoencoder of a teacher directory from its `vae/` folder; see `AutoencoderCodec` for `tile_above`.

    Raises:
        ModelError: `vae/config.json` is missing or names an unknown class.
    """
    file = path / "config.json"
    if not file.is_file():
        raise ModelError(f"{file}: not found; a teacher directory holds transformer/, vae/ and scheduler/")
    config = json.loads(file.read_text())
    kind = config.get("_class_name")
    if kind == "SpaceToDepthCodec":
        return SpaceToDepthCodec(config["factor"], config["shift_factor"], config["scaling_factor"])
    if kind in ("AutoencoderKL", "AutoencoderKLFlux2"):
        import diffusers

        # FLUX.2's is loaded in float32, so that its statistics are not rounded.
        first = torch.float32 if kind == "AutoencoderKLFlux2" else dtype
        vae = getattr(diffusers, kind).from_pretrained(path, torch_dtype=first, use_safetensors=True)
        if kind == "AutoencoderKLFlux2" and not vae.bn.running_mean.any():
            # A loader leaves the zeros of a new batch norm where the file has no statistics.
            raise ModelError(f"{path}: bn.running_mean is not in the weights, or all zeros; download them again")
        codec = (PatchNormCodec if kind == "AutoencoderKLFlux2" else AutoencoderCodec)(
            vae.requires_grad_(False).eval(), tile_above
        )
        if device.type == "cuda" and trustworthy_group_norm(device, dtype):
            speed_up_autoencoder(vae)
        # Module.to casts in silence, where diffusers' own `to` warns of what loading in that type does as well.
        torch.nn.Module.to(vae, device, dtype)
        return codec
    raise ModelError(
        f"{file}: codec class {kind!r} is not supported; use AutoencoderKL, AutoencoderKLFlux2 or SpaceToDepthCodec"
    )


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) -> tokens (B, h/2 * w/2, C * 4), in the order of FluxPipeline._pack_latents."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 2 * (w // 2), c * 4)


def unpack(tokens: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """The inverse of `pack` for latents of height h and width w."""
    b, _, d = tokens.shape
    return tokens.view(b, h // 2, w // 2, d // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, d // 4, h, w)


def image_ids(h: int, w: int, device: torch.device | None = None) -> torch.Tensor:
    """RoPE positions (h/2 * w/2, 3) of the packed latents: (0, row, column)."""
    ids = torch.zeros(h // 2, w // 2, 3, device=device)
    ids[..., 1] = torch.arange(h // 2, device=device)[:, None]
    ids[..., 2] = torch.arange(w // 2, device=device)[None]
    return ids.reshape(-1, 3)

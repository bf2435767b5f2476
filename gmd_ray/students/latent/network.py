"""The network of the latent diffusion student: an MMDiT whose input is the noisy latent and the LQ latent together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SD3Transformer2DModel

_TIMESTEPS = 1000
"""Time that diffusers assigns to noise level 1."""


class LatentNetwork(nn.Module):
    """The velocity of a noisy latent, given the latent of the LQ image.

    There is no text; the transformer gets one zero token and a zero pooled vector instead.
    """

    def __init__(self, transformer: SD3Transformer2DModel) -> None:
        super().__init__()
        self.transformer = transformer
        config = transformer.config
        self.channels: int = config.out_channels
        self._text = (config.joint_attention_dim, config.pooled_projection_dim)

    def forward(self, noisy: Tensor, lq: Tensor, sigma: Tensor) -> Tensor:
        """Predict noise - clean.

        Args:
            noisy: noisy latent (1 - sigma) * clean + sigma * noise, (B, C, h, w).
            lq: latent of the LQ image, (B, C, h, w).
            sigma: noise levels in [0, 1], (B,).

        Returns:
            (B, C, h, w).
        """
        batch = len(noisy)
        velocity: Tensor = self.transformer(
            hidden_states=torch.cat([noisy, lq], dim=1),
            encoder_hidden_states=noisy.new_zeros(batch, 1, self._text[0]),
            pooled_projections=noisy.new_zeros(batch, self._text[1]),
            timestep=sigma * _TIMESTEPS,
            return_dict=False,
        )[0]
        return velocity


class LatentCodec:
    """A frozen `AutoencoderKL` between pixels in [0, 1] and normalised latents.

    It is not a part of the student's module, as it is not trained. `encode` uses the mean of the posterior, so nothing
    is drawn.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae.requires_grad_(False).eval()
        self.factor: int = 2 ** (len(vae.config.block_out_channels) - 1)
        self._shift: float = vae.config.shift_factor or 0.0
        self._scale: float = vae.config.scaling_factor

    def to(self, device: torch.device) -> None:
        """Move the autoencoder to a device, unless it is there already."""
        if self.vae.device != device:
            self.vae.to(device)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, H, W), whose sides are multiples of `factor`, to (B, C, H / factor, W / factor)."""
        mean: Tensor = self.vae.encode(pixels * 2 - 1).latent_dist.mode()
        return (mean.float() - self._shift) * self._scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, h, w) to pixels (B, 3, h * factor, w * factor), not clamped."""
        pixels: Tensor = self.vae.decode(latents / self._scale + self._shift).sample
        return (pixels.float() + 1) / 2


def sample(network: nn.Module, lq: Tensor, noise: Tensor, sigmas: list[float]) -> Tensor:
    """Integrate the velocity from noise to a clean latent by Euler's method.

    Args:
        network: a `LatentNetwork`.
        lq: latents of the LQ images, (B, C, h, w).
        noise: standard normal noise, (B, C, h, w).
        sigmas: decreasing noise levels that begin with 1; the last step goes from the last level to 0.

    Returns:
        clean latents, (B, C, h, w).
    """
    z = noise
    for now, then in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        level = torch.full((len(z),), now, device=z.device)
        z = z + (then - now) * network(z, lq, level).float()
    return z


def even_sigmas(steps: int) -> list[float]:
    """Return the noise levels 1, (n - 1) / n, ..., 1 / n for n steps.

    diffusers' own grid for few steps wastes the last step on sigma 0.001.
    """
    return [1 - i / steps for i in range(steps)]

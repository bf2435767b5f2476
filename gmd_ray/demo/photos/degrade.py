"""Generic degradations of photographs in batches: the low-quality class of the teacher's training.

Noise is that of a camera (signal-dependent on a Bayer mosaic, demosaicked), correlated as processing leaves it, or
white; a little blur and JPEG follow. The demo's target domain has another camera model (`camera.py`).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from gmd_ray.demo.photos.draws import Draws
from gmd_ray.demo.photos.jpeg import BatchJpeg

GAMMA = 2.2
_RADIUS = 4


def gaussian_blur(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur (B, C, H, W) by a Gaussian of each image's own sigma, (B, 1, 1, 1), cut off at 4 pixels; 0 does nothing."""
    b, c, h, w = x.shape
    at = torch.arange(-_RADIUS, _RADIUS + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (at[None] / sigma.view(b, 1).clamp_min(1e-2)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)
    y = F.pad(x, (_RADIUS,) * 4, mode="reflect").reshape(1, b * c, h + 2 * _RADIUS, w + 2 * _RADIUS)
    y = F.conv2d(y, kernel.view(b * c, 1, 1, -1), groups=b * c)
    y = F.conv2d(y, kernel.view(b * c, 1, -1, 1), groups=b * c)
    return y.view(b, c, h, w)


class GenericDegradation:
    """Degradation of a batch, (B, 3, H, W) in [0, 1]; H and W multiples of 16."""

    def __init__(self, draws: Draws) -> None:
        self._draws = draws
        self._jpeg = BatchJpeg(draws.device)
        red_blue = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
        green = torch.tensor([[0.0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
        self._demosaic = torch.stack([red_blue, green, red_blue])[:, None].to(draws.device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Add noise (9 of 10), blur (3 of 10) and compress (6 of 10)."""
        b, draws = len(x), self._draws
        zero = torch.zeros(1, device=x.device)
        y = x + torch.where(draws.chance(b, 0.9), self.noise(x), zero)
        y = gaussian_blur(y.clamp(0, 1), torch.where(draws.chance(b, 0.3), draws.uniform(b, 0.25, 0.8), zero))
        quality = draws.uniform(b, 35, 98).round()
        compressed = self._jpeg(y, quality, subsample=bool(draws.unit() < 0.5))
        return torch.where(draws.chance(b, 0.6), compressed, y).clamp(0, 1)

    def noise(self, x: torch.Tensor) -> torch.Tensor:
        """Draw a residual for each image: of a camera (45 %), correlated (30 %) or white; a quarter adds correlated."""
        b, draws = len(x), self._draws
        white = draws.normal_like(x) * draws.uniform(b, 1, 25) / 255
        correlated = self._correlated(x)
        camera = self._camera(x)
        kind = draws.unit(b, 1, 1, 1)
        chosen = torch.where(kind < 0.45, camera, torch.where(kind < 0.75, correlated, white))
        return chosen + torch.where(draws.chance(b, 0.25), correlated * 0.6, torch.zeros_like(correlated))

    def _correlated(self, x: torch.Tensor) -> torch.Tensor:
        """Noise as in-camera processing and plain denoisers leave it behind, luma and colour apart."""
        b, draws = len(x), self._draws
        pattern = gaussian_blur(draws.normal_like(x), draws.uniform(b, 0.4, 2.2))
        pattern = pattern / pattern.std((1, 2, 3), keepdim=True)
        luma = pattern.mean(1, keepdim=True)
        mixed = luma * draws.uniform(b, 0.4, 1.6) + (pattern - luma) * draws.uniform(b, 0.3, 1.6)
        return mixed * draws.log_uniform(b, 1.5, 12) / 255

    def _camera(self, x: torch.Tensor) -> torch.Tensor:
        """Shot and read noise on a Bayer mosaic, then bilinear demosaicking, white balance, colour matrix and gamma."""
        (b, _, h, w), draws = x.shape, self._draws
        light = x.clamp(1e-5, 1) ** GAMMA
        gain = torch.cat(
            [draws.uniform(b, 1.2, 2.4), torch.ones(b, 1, 1, 1, device=x.device), draws.uniform(b, 1.2, 2.4)], 1
        )
        deviation = (draws.log_uniform(b, 1e-4, 8e-3) * light / gain + draws.log_uniform(b, 1e-7, 6e-5)).sqrt()
        mosaic = torch.zeros(1, 3, h, w, device=x.device)
        mosaic[:, 0, ::2, ::2] = mosaic[:, 1, ::2, 1::2] = mosaic[:, 1, 1::2, ::2] = mosaic[:, 2, 1::2, 1::2] = 1
        raw = draws.normal_like(x) * deviation * mosaic
        noise = F.conv2d(raw, self._demosaic, padding=1, groups=3) * gain
        mixing = draws.uniform(b, 0.0, 0.35)
        noise = noise * (1 + 2 * mixing) - mixing * (noise.sum(1, keepdim=True) - noise)
        return (light + noise).clamp(1e-6, 1) ** (1 / GAMMA) - x

"""PSNR and SSIM in the conventions of the restoration papers; they need no weights and no other package.

Values are those of 8-bit images: both inputs are clamped and rounded to 8 bits, then compared in float64 on the
0..255 scale (restoration.md 3.1: published tables mix RGB and Y, so the name says which one it is).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from gmd_ray.errors import DataError
from gmd_ray.images.luma import BT601_STUDIO
from gmd_ray.quality.inputs import pick_device, prepare_pair

MAX_PSNR = 100.0
"""dB reported for (nearly) identical images, whose PSNR is infinite and would void every mean."""

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def luma(levels: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in 0..255 -> (B, 1, H, W) in 16..235: Y of BT.601 YCbCr, as MATLAB's rgb2ycbcr but not rounded."""
    weights = torch.tensor(BT601_STUDIO, dtype=levels.dtype, device=levels.device) / 255
    return 16 + (levels * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


def peak_signal_to_noise(x: torch.Tensor, y: torch.Tensor) -> float:
    """dB of two float64 tensors on the 0..255 scale, over all channels together; at most MAX_PSNR."""
    error = torch.mean((x - y) ** 2).item()
    if error == 0:
        return MAX_PSNR
    return min(MAX_PSNR, 10 * math.log10(255**2 / error))


def structural_similarity(x: torch.Tensor, y: torch.Tensor) -> float:
    """Mean SSIM of two float64 tensors (B, C, H, W) on the 0..255 scale.

    Wang et al. 2004: 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, L = 255, biased covariance, averaged
    over the region where the window fits ("valid"), then over channels. No downsampling first.

    Raises:
        DataError: a side shorter than the window.
    """
    height, width = x.shape[-2:]
    if min(height, width) < WINDOW:
        raise DataError(f"SSIM needs at least {WINDOW}x{WINDOW} pixels; this image has {width}x{height}")
    mean_x, mean_y = _window(x), _window(y)
    var_x = _window(x * x) - mean_x**2
    var_y = _window(y * y) - mean_y**2
    cov = _window(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + C1) * (2 * cov + C2) / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))
    return similarity.mean().item()


def _window(x: torch.Tensor) -> torch.Tensor:
    offsets = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    kernel = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    channels = x.shape[1]
    rows = F.conv2d(x, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


_COMPARE: dict[str, Callable[[torch.Tensor, torch.Tensor], float]] = {
    "psnr": peak_signal_to_noise,
    "ssim": structural_similarity,
}


class FullReference:
    """`psnr`, `psnr_y`, `ssim` or `ssim_y` as a `Metric`: over RGB, or over Y of BT.601 YCbCr.

    Args:
        name: one of the four.
        device: auto, cpu, cuda or cuda:N.
        crop_border: pixels cut from each side of both images first.
    """

    higher_is_better = True
    needs_reference = True

    def __init__(self, name: str, device: str = "auto", crop_border: int = 0) -> None:
        self.name = name
        self._compare = _COMPARE[name.removesuffix("_y")]
        self._on_luma = name.endswith("_y")
        self._device = pick_device(device, "evaluation.device")
        self._crop_border = crop_border

    def __call__(self, image: torch.Tensor, reference: torch.Tensor | None = None) -> float:
        """Two images, RGB in [0, 1], (3, H, W); dB for PSNR, at most 1 for SSIM."""
        pair = prepare_pair(self.name, image, reference, self._device, self._crop_border)
        x, y = (torch.round(side.double() * 255) for side in pair)
        if self._on_luma:
            x, y = luma(x), luma(y)
        return self._compare(x, y)

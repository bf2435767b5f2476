"""PSNR and SSIM in the conventions of the restoration papers; they need no weights and no other package.

Both inputs are clamped and rounded to 8 bits, as saved files would be, then compared in float64 on the 0..255 scale.
Published tables mix values over RGB and over Y, so the name of each metric says which one it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from gmd_ray.devices import choose_device
from gmd_ray.errors import DataError
from gmd_ray.images.luma import BT601_STUDIO
from gmd_ray.quality.inputs import crop_mask, prepare_pair

MAX_PSNR = 100.0
"""PSNR in dB of (nearly) identical images: the true value is infinite and would make every mean infinite."""

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def luma(levels: torch.Tensor) -> torch.Tensor:
    """Convert RGB (B, 3, H, W) in 0..255 to Y of BT.601 YCbCr, (B, 1, H, W) in 16..235.

    The result is that of MATLAB's rgb2ycbcr, without its rounding.
    """
    weights = torch.tensor(BT601_STUDIO, dtype=levels.dtype, device=levels.device) / 255
    return 16 + (levels * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


def peak_signal_to_noise(x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Compute the PSNR in dB of two float64 tensors (B, C, H, W) on the 0..255 scale; at most MAX_PSNR.

    The mean is over all channels, and over the pixels of the mask, bool (H, W), if there is one.
    """
    squares = (x - y) ** 2
    error = torch.mean(squares if mask is None else squares[..., mask]).item()
    if error == 0:
        return MAX_PSNR
    return min(MAX_PSNR, 10 * math.log10(255**2 / error))


def structural_similarity(x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Compute the mean SSIM of two float64 tensors (B, C, H, W) on the 0..255 scale.

    As in Wang et al. 2004: 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, L = 255, biased covariance. The
    values are averaged over the region where the window fits ("valid"), then over channels; nothing is downsampled.

    Args:
        mask: bool (H, W); windows are averaged whose centre is in it.

    Raises:
        DataError: a side shorter than the window, or a mask that leaves nothing.
    """
    height, width = x.shape[-2:]
    if min(height, width) < WINDOW:
        raise DataError(f"SSIM needs at least {WINDOW}x{WINDOW} pixels; this image has {width}x{height}")
    mean_x, mean_y = _window(x), _window(y)
    var_x = _window(x * x) - mean_x**2
    var_y = _window(y * y) - mean_y**2
    cov = _window(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + C1) * (2 * cov + C2) / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))
    if mask is not None:
        inner = mask[WINDOW // 2 : height - WINDOW // 2, WINDOW // 2 : width - WINDOW // 2]
        if not inner.any():
            raise DataError("SSIM: no window lies where the aligned image does")
        similarity = similarity[..., inner]
    return similarity.mean().item()


def _window(x: torch.Tensor) -> torch.Tensor:
    """Blur (B, C, H, W) with SSIM's Gaussian window to (B, C, H - 10, W - 10), one axis after the other."""
    offsets = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    kernel = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    channels = x.shape[1]
    rows = F.conv2d(x, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


_COMPARE: dict[str, Callable[..., float]] = {
    "psnr": peak_signal_to_noise,
    "ssim": structural_similarity,
}


class FullReference:
    """The metrics `psnr` and `ssim` over RGB, `psnr_y` and `ssim_y` over Y of BT.601 YCbCr; a `Metric`.

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
        self._device = choose_device(device, "evaluation.device")
        self._crop_border = crop_border

    def __call__(
        self, image: torch.Tensor, reference: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> float:
        """Compare two RGB images in [0, 1], (3, H, W); returns dB for PSNR, a value of at most 1 for SSIM.

        Args:
            mask: bool (H, W), the pixels that count; None: all.

        Raises:
            DataError: no reference, one of another size, or an image that is too small or holds NaN.
        """
        pair = prepare_pair(self.name, image, reference, self._device, self._crop_border)
        x, y = (torch.round(side.double() * 255) for side in pair)
        if self._on_luma:
            x, y = luma(x), luma(y)
        if mask is None:
            return self._compare(x, y)
        return self._compare(x, y, crop_mask(mask, self._device, self._crop_border))

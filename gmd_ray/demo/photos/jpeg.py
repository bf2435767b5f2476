"""JPEG compression of batches on any device, as arithmetic: no entropy coding, which loses nothing."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
"""Quantisation of luma at quality 50 (ITU-T T.81, table K.1), row by row."""
CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, *(99,) * 38,
)  # fmt: skip
"""Quantisation of the colour differences at quality 50 (ITU-T T.81, table K.2)."""


class BatchJpeg:
    """JPEG with libjpeg's scaling of the standard tables."""

    def __init__(self, device: torch.device) -> None:
        n = torch.arange(8.0)
        dct = torch.cos((2 * n[None] + 1) * n[:, None] * math.pi / 16) * 0.5
        dct[0] /= math.sqrt(2)
        self._dct = dct.to(device)
        self._tables = [
            torch.tensor(table, dtype=torch.float32, device=device).view(1, 1, 1, 8, 8) for table in (LUMA, CHROMA)
        ]

    def __call__(self, x: torch.Tensor, quality: torch.Tensor, subsample: bool) -> torch.Tensor:
        """Compress and decompress.

        Args:
            x: RGB in [0, 1], (B, 3, H, W); H and W multiples of 8, or of 16 with `subsample`.
            quality: 1 to 100, one for each image, (B, 1, 1, 1).
            subsample: halve the colour differences along both sides (4:2:0).

        Returns:
            RGB in [0, 1], (B, 3, H, W), not rounded to 8 bits.
        """
        r, g, b = (x.clamp(0, 1) * 255).round().unbind(1)
        y = 0.299 * r + 0.587 * g + 0.114 * b
        differences = (b - y) * 0.564, (r - y) * 0.713
        y = self._plane(y - 128, self._tables[0], quality) + 128
        cb, cr = (self._difference(c, quality, subsample) for c in differences)
        red, blue = y + cr / 0.713, y + cb / 0.564
        return (torch.stack([red, (y - 0.299 * red - 0.114 * blue) / 0.587, blue], 1) / 255).clamp(0, 1)

    def _difference(self, c: torch.Tensor, quality: torch.Tensor, subsample: bool) -> torch.Tensor:
        if not subsample:
            return self._plane(c, self._tables[1], quality)
        small = self._plane(F.avg_pool2d(c[:, None], 2)[:, 0], self._tables[1], quality)
        return F.interpolate(small[:, None], scale_factor=2, mode="bilinear", align_corners=False)[:, 0]

    def _plane(self, p: torch.Tensor, table: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
        """Quantise the cosine coefficients of the 8 x 8 blocks of (B, H, W), levels around 0."""
        b, h, w = p.shape
        percent = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).view(b, 1, 1, 1, 1)
        steps = ((table * percent + 50) / 100).floor().clamp(1, 255)
        blocks = p.view(b, h // 8, 8, w // 8, 8).permute(0, 1, 3, 2, 4)
        coefficients = self._dct @ blocks @ self._dct.T
        blocks = self._dct.T @ ((coefficients / steps).round() * steps) @ self._dct
        return blocks.permute(0, 1, 3, 2, 4).reshape(b, h, w)

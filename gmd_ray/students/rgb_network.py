"""A restoration network of any channel count and size requirement behind one RGB interface."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gmd_ray.images.luma import BT601
from gmd_ray.images.padding import pad

_ONE_BY_ONE = {"DRUNet", "IPT", "SeemoRe"}
"""Architectures that mix up the images of a batch: DRUNet (like FDnCNN) makes its noise map for one image, IPT cuts
patches of one, SeemoRe routes a batch through the experts of all its images."""


def luma(rgb: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), BT.601."""
    weights = torch.tensor(BT601, dtype=rgb.dtype, device=rgb.device).view(1, 3, 1, 1)
    return (rgb * weights).sum(1, keepdim=True)


class RgbNetwork(nn.Module):
    """The network of a spandrel descriptor, callable on any batch of RGB images, with gradients.

    The descriptor's own call runs in inference mode, clamps and promises one image only, so training goes through
    this. Images are padded at the right and bottom to what the network asks for (reflected, and replicated where the
    image is too small to reflect) and the result is cropped. A one-channel network sees the BT.601 luma and its result
    is replicated to RGB.

    In a few architectures training never reaches every parameter (SPAN's folded convolutions, an odd layer of FFTformer
    and HVICIDNet); DDP needs `find_unused_parameters=True` for those.
    """

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.network: nn.Module = descriptor.model
        self.scale: int = descriptor.scale
        self.input_channels: int = descriptor.input_channels
        self.output_channels: int = descriptor.output_channels
        self._sizes = descriptor.size_requirements
        # Ten architectures do not take or return a plain image; how to call them is only there (spandrel is pinned).
        self._call = descriptor._call_fn
        self._one_by_one: bool = descriptor.architecture.id in _ONE_BY_ONE or "FDnCNN" in descriptor.tags

    def forward(self, lq: Tensor) -> Tensor:
        """float RGB in [0, 1], (B, 3, H, W) -> (B, 3, H * scale, W * scale), same dtype, not clamped."""
        height, width = lq.shape[-2:]
        # A copy, since some networks (RCAN) scale their input in place.
        x = luma(lq) if self.input_channels == 1 else lq.clone()
        right, bottom = self._sizes.get_padding(width, height)
        x = pad(x, bottom, right)
        if self._one_by_one:
            y = torch.cat([self._call(self.network, image) for image in x.split(1)])
        else:
            y = self._call(self.network, x)
        y = y[..., : height * self.scale, : width * self.scale].to(lq.dtype)
        return y.expand(-1, 3, -1, -1) if self.output_channels == 1 else y

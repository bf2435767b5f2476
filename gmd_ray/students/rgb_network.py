"""A wrapper that gives restoration networks of any channel count and size requirement one RGB interface."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gmd_ray.images.luma import BT601
from gmd_ray.images.padding import pad

_ONE_BY_ONE = {"DRUNet", "IPT", "SeemoRe"}
"""Architectures that must get one image at a time. DRUNet (like FDnCNN) makes a noise map for one image, IPT cuts
patches of one image, and SeemoRe chooses its experts for the batch as a whole."""


def luma(rgb: Tensor) -> Tensor:
    """Compute the BT.601 luma of RGB: (B, 3, H, W) -> (B, 1, H, W)."""
    weights = torch.tensor(BT601, dtype=rgb.dtype, device=rgb.device).view(1, 3, 1, 1)
    return (rgb * weights).sum(1, keepdim=True)


class RgbNetwork(nn.Module):
    """The network of a spandrel descriptor, callable on any batch of RGB images, with gradients.

    The descriptor's own call runs in inference mode, clamps, and supports one image only, so it cannot train. Images
    are padded at the right and bottom to the sizes that the network requires, and the result is cropped. A one-channel
    network gets the BT.601 luma, and its result is repeated in all three channels.

    In a few architectures, training does not reach every parameter (SPAN's folded convolutions, a layer of FFTformer
    and of HVICIDNet). DDP needs `find_unused_parameters=True` for those.
    """

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.network: nn.Module = descriptor.model
        self.scale: int = descriptor.scale
        self.input_channels: int = descriptor.input_channels
        self.output_channels: int = descriptor.output_channels
        self._sizes = descriptor.size_requirements
        # Ten architectures do not map a plain image to a plain image. Only this private function of the descriptor
        # knows how to call them, so pyproject.toml pins spandrel.
        self._call = descriptor._call_fn
        self._one_by_one: bool = descriptor.architecture.id in _ONE_BY_ONE or "FDnCNN" in descriptor.tags

    def forward(self, lq: Tensor) -> Tensor:
        """Map float RGB in [0, 1], (B, 3, H, W), to (B, 3, H * scale, W * scale) of the same dtype, not clamped."""
        height, width = lq.shape[-2:]
        # The input is copied, since some networks (RCAN) scale it in place.
        x = luma(lq) if self.input_channels == 1 else lq.clone()
        right, bottom = self._sizes.get_padding(width, height)
        x = pad(x, bottom, right)
        if self._one_by_one:
            y = torch.cat([self._call(self.network, image) for image in x.split(1)])
        else:
            y = self._call(self.network, x)
        y = y[..., : height * self.scale, : width * self.scale].to(lq.dtype)
        return y.expand(-1, 3, -1, -1) if self.output_channels == 1 else y

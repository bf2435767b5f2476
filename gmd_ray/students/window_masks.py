"""Attention masks of shifted windows, computed on the device of the network instead of the CPU."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

_HIDDEN = -100.0
"""Added to the attention between pixels that are neighbours only because the image was rolled; spandrel's value."""


def masks_on_device(network: nn.Module) -> None:
    """Let the blocks of SwinIR, Swin2SR and DRCT compute their masks where their weights are.

    spandrel's blocks, like the authors' own, compute the mask anew in every forward pass on an image of another size
    than the network was built for, on the CPU, and copy it to the device: 64 MiB a block for 512 x 512 pixels, in more
    time than a GPU needs for the whole network. The values stay the same.

    Args:
        network: any network; others are left as they are.
    """
    block: Any
    for block in network.modules():
        if type(block).__name__ == "SwinTransformerBlock" and hasattr(block, "calculate_mask"):
            block.calculate_mask = functools.partial(_mask, block)


def _mask(block: Any, size: tuple[int, int]) -> Tensor:
    """The mask of the windows of an image of (height, width): (windows, pixels, pixels), 0 or `_HIDDEN`."""
    window, shift, device = block.window_size, block.shift_size, block.norm1.weight.device
    height, width = size
    bands = []
    for side in size:
        line = torch.arange(side, device=device)
        # The last windows hold what was rolled in from the other side. Without a shift all of the image is one region.
        bands.append((line >= side - window).int() + (line >= side - shift).int() if shift else 0 * line)
    regions = 3 * bands[0][:, None] + bands[1]
    pixels = regions.view(height // window, window, width // window, window).transpose(1, 2).flatten(2).flatten(0, 1)
    apart = pixels[:, None] != pixels[:, :, None]
    return torch.zeros(apart.shape, device=device).masked_fill(apart, _HIDDEN)

"""Group norm and SiLU of an autoencoder in two passes over memory, on tensors whose channels lie side by side.

PyTorch computes the moments of a group in one block of threads: one image has 32 groups, an H100 has 132 processors,
and the moments took 42 % of the autoencoder's time there. Its kernels also want another layout than the convolutions,
which then copy. Here convolutions and norms share one layout, channels last: a first kernel sums pieces of the image
for every channel, a second makes one factor and one summand for each channel of them, and a third applies both and
SiLU.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn import functional as F

from gmd_ray.teachers.acceleration.kernels import agrees, available, power_of_2, tl, triton

PIECES = 256
"""Most pieces of an image whose pixels are summed by themselves."""
TILE = 4096
"""Numbers that one program of a kernel holds at a time."""


def norm_silu(norm: nn.GroupNorm, x: torch.Tensor, *, silu: bool) -> torch.Tensor:
    """Group norm with weight and bias, and SiLU after it where wanted; sums are taken in float32.

    Args:
        x: (B, C, ...) with a power of two of channels that lie side by side in memory. Any other tensor takes
            PyTorch's own path.
    """
    dense = x.movedim(1, -1)
    if not (dense.is_contiguous() and power_of_2(x.shape[1]) == x.shape[1] and available(x.device)):
        out = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return F.silu(out) if silu else out
    batch, channels = x.shape[:2]
    pixels = x[0, 0].numel()
    tile = max(1, TILE // channels)
    each = -(-pixels // PIECES)
    each = -(-each // tile) * tile  # whole tiles
    pieces = -(-pixels // each)
    sums = torch.empty(batch, pieces, 2, channels, device=x.device, dtype=torch.float32)
    _sums_kernel[(pieces, batch)](x, sums, pixels, each, channels=channels, tile=tile)
    factors = torch.empty(batch, 2, channels, device=x.device, dtype=torch.float32)
    in_group = channels // norm.num_groups
    _factors_kernel[(norm.num_groups, batch)](
        sums, norm.weight, norm.bias, factors, pieces, pixels * in_group, norm.eps, channels=channels,
        in_group=in_group, pieces_up=power_of_2(pieces),
    )  # fmt: skip
    out = torch.empty_like(x)  # keeps the layout
    numbers = pixels * channels
    _apply_kernel[(triton.cdiv(numbers, TILE), batch)](
        x, factors, out, numbers, channels=channels, silu=silu, block=TILE
    )
    return out


class NormedResnet(ResnetBlock2D):
    """A residual block of an autoencoder with `norm_silu` ahead of its convolutions."""

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None = None, *_: Any, **__: Any) -> torch.Tensor:
        """(B, C, H, W) -> (B, C', H, W), as the plain block."""
        assert temb is None
        x = self.conv1(norm_silu(self.norm1, input_tensor, silu=True))
        x = self.conv2(norm_silu(self.norm2, x, silu=True))
        shortcut = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return shortcut + x


def speed_up_autoencoder(vae: Any) -> None:
    """Let a diffusers `AutoencoderKL`, or that of FLUX.2, work in this layout and with these norms."""
    vae.to(memory_format=torch.channels_last)
    block: Any
    for block in vae.modules():
        if type(block) is ResnetBlock2D and _is_plain(block):
            block.__class__ = NormedResnet
        elif type(block) is nn.GroupNorm and block.affine:
            block.forward = partial(norm_silu, block, silu=False)  # type: ignore[method-assign]
    for half in (vae.encoder, vae.decoder):
        if isinstance(half.conv_act, nn.SiLU):
            half.conv_norm_out.forward = partial(norm_silu, half.conv_norm_out, silu=True)
            half.conv_act = nn.Identity()


@cache
def trustworthy_group_norm(device: torch.device, dtype: torch.dtype) -> bool:
    """True if the kernels run on that device and agree with the plain path there; else a warning says why not."""
    if not available(device):
        return False
    generator = torch.Generator().manual_seed(0)
    norm = nn.GroupNorm(8, 64, eps=1e-6, device=device, dtype=dtype)
    x = torch.randn(2, 64, 70, 33, generator=generator).to(device, dtype).to(memory_format=torch.channels_last)
    return agrees(
        "group norm",
        lambda: norm_silu(norm, x, silu=True),
        lambda: F.silu(F.group_norm(x, 8, norm.weight, norm.bias, norm.eps)),
        16 * torch.finfo(dtype).eps,  # the largest numbers are about 4
        compiled=False,
    )


def _is_plain(block: Any) -> bool:
    """True for a residual block without time, resampling, dropout or a factor at its end."""
    return (
        block.time_emb_proj is None
        and block.upsample is None
        and block.downsample is None
        and block.dropout.p == 0
        and block.output_scale_factor == 1
        and isinstance(block.nonlinearity, nn.SiLU)
    )


if triton is not None:

    @triton.jit
    def _sums_kernel(x_ptr, sums_ptr, pixels, each, channels: tl.constexpr, tile: tl.constexpr):  # type: ignore[no-untyped-def]
        # One program has `each` pixels of one image: for every channel the sum of its numbers and of their squares.
        piece, image = tl.program_id(0), tl.program_id(1)
        channel = tl.arange(0, channels)
        total = tl.zeros((channels,), tl.float32)
        squares = tl.zeros((channels,), tl.float32)
        for start in range(0, each, tile):
            pixel = piece * each + start + tl.arange(0, tile)
            # 64 bits: a large photo has more numbers than 32 count.
            at = (image.to(tl.int64) * pixels + pixel)[:, None] * channels + channel[None, :]
            x = tl.load(x_ptr + at, mask=(pixel < pixels)[:, None], other=0.0).to(tl.float32)
            total += tl.sum(x, axis=0)
            squares += tl.sum(x * x, axis=0)
        to = sums_ptr + (image * tl.num_programs(0) + piece) * 2 * channels + channel
        tl.store(to, total)
        tl.store(to + channels, squares)

    @triton.jit
    def _factors_kernel(  # type: ignore[no-untyped-def]
        sums_ptr, weight_ptr, bias_ptr, factors_ptr, pieces, count, eps, channels: tl.constexpr,
        in_group: tl.constexpr, pieces_up: tl.constexpr,
    ):  # fmt: skip
        # One program has one group of one image: norm(x) = x * factor + summand, each channel with its own two.
        group, image = tl.program_id(0), tl.program_id(1)
        piece, channel = tl.arange(0, pieces_up), group * in_group + tl.arange(0, in_group)
        at = (image * pieces + piece)[:, None] * 2 * channels + channel[None, :]
        inside = (piece < pieces)[:, None]
        mean = tl.sum(tl.sum(tl.load(sums_ptr + at, mask=inside, other=0.0), axis=1), axis=0) / count
        square = tl.sum(tl.sum(tl.load(sums_ptr + at + channels, mask=inside, other=0.0), axis=1), axis=0) / count
        rate = tl.rsqrt(tl.maximum(square - mean * mean, 0.0) + eps)
        factor = tl.load(weight_ptr + channel).to(tl.float32) * rate
        summand = tl.load(bias_ptr + channel).to(tl.float32) - mean * factor
        tl.store(factors_ptr + image * 2 * channels + channel, factor)
        tl.store(factors_ptr + image * 2 * channels + channels + channel, summand)

    @triton.jit
    def _apply_kernel(  # type: ignore[no-untyped-def]
        x_ptr, factors_ptr, out_ptr, numbers, channels: tl.constexpr, silu: tl.constexpr, block: tl.constexpr
    ):
        image = tl.program_id(1)
        at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        inside = at < numbers
        first = image.to(tl.int64) * numbers
        channel = image * 2 * channels + at % channels
        x = tl.load(x_ptr + first + at, mask=inside, other=0.0)
        y = x.to(tl.float32) * tl.load(factors_ptr + channel) + tl.load(factors_ptr + channel + channels)
        if silu:
            y = y * tl.sigmoid(y)
        tl.store(out_ptr + first + at, y.to(x.dtype), mask=inside)

"""Keys and shapes of published checkpoints, in the order of their files; no class is involved."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def conv(name: str, out: int, into: int, kernel: int = 3, bias: bool = True) -> Shapes:
    yield f"{name}.weight", (out, into, kernel, kernel)
    if bias:
        yield f"{name}.bias", (out,)


def linear(name: str, out: int, into: int) -> Shapes:
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def swinir_classical_x4() -> Shapes:
    """001_classicalSR_DF2K_s64w8_SwinIR-M_x4.pth, wrapped in `params`."""
    width, heads, window = 180, 6, 64
    yield from conv("conv_first", width, 3)
    yield from norm("patch_embed.norm", width)
    for i in range(6):
        for j in range(6):
            block = f"layers.{i}.residual_group.blocks.{j}"
            if j % 2:
                yield f"{block}.attn_mask", (64, window, window)
            yield from norm(f"{block}.norm1", width)
            yield f"{block}.attn.relative_position_bias_table", (225, heads)
            yield f"{block}.attn.relative_position_index", (window, window)
            yield from linear(f"{block}.attn.qkv", 3 * width, width)
            yield from linear(f"{block}.attn.proj", width, width)
            yield from norm(f"{block}.norm2", width)
            yield from linear(f"{block}.mlp.fc1", 2 * width, width)
            yield from linear(f"{block}.mlp.fc2", width, 2 * width)
        yield from conv(f"layers.{i}.conv", width, width)
    yield from norm("norm", width)
    yield from conv("conv_after_body", width, width)
    yield from conv("conv_before_upsample.0", 64, width)
    yield from conv("upsample.0", 256, 64)
    yield from conv("upsample.2", 256, 64)
    yield from conv("conv_last", 3, 64)


def nafnet_gopro_width32() -> Shapes:
    """NAFNet-GoPro-width32.pth, wrapped in `params`."""
    yield from conv("intro", 32, 3)
    yield from conv("ending", 3, 32)
    for i, count in enumerate((1, 1, 1, 28)):
        for j in range(count):
            yield from _nafnet_block(f"encoders.{i}.{j}", 32 << i)
    for i in range(4):
        yield from _nafnet_block(f"decoders.{i}.0", 256 >> i)
    yield from _nafnet_block("middle_blks.0", 512)
    for i in range(4):
        yield from conv(f"ups.{i}.0", 1024 >> i, 512 >> i, 1, bias=False)
    for i in range(4):
        yield from conv(f"downs.{i}", 64 << i, 32 << i, 2)


def _nafnet_block(block: str, width: int) -> Shapes:
    yield f"{block}.beta", (1, width, 1, 1)
    yield f"{block}.gamma", (1, width, 1, 1)
    yield from conv(f"{block}.conv1", 2 * width, width, 1)
    yield from conv(f"{block}.conv2", 2 * width, 1, 3)
    yield from conv(f"{block}.conv3", width, width, 1)
    yield from conv(f"{block}.sca.1", width, width, 1)
    yield from conv(f"{block}.conv4", 2 * width, width, 1)
    yield from conv(f"{block}.conv5", width, width, 1)
    yield from norm(f"{block}.norm1", width)
    yield from norm(f"{block}.norm2", width)


def realesrgan_x4plus() -> Shapes:
    """RealESRGAN_x4plus.pth, wrapped in `params_ema`."""
    yield from conv("conv_first", 64, 3)
    for i in range(23):
        for j in (1, 2, 3):
            for k in range(5):
                yield from conv(f"body.{i}.rdb{j}.conv{k + 1}", 64 if k == 4 else 32, 64 + 32 * k)
    for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
        yield from conv(name, 64, 64)
    yield from conv("conv_last", 3, 64)


def filled(shapes: Shapes) -> dict[str, Tensor]:
    """Small random weights of these shapes, and buffers that the networks accept."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in shapes:
        if key.endswith("relative_position_index"):
            state[key] = torch.zeros(shape, dtype=torch.int64)
        elif key.endswith("attn_mask"):
            state[key] = torch.zeros(shape)
        else:
            state[key] = 0.02 * torch.randn(shape, generator=generator)
    return state

"""Elementwise work of a transformer's blocks in fewer passes over memory, as Triton kernels on a GPU.

Each function has a plain path, which is the one on a CPU and for types that the kernel does not take. Both paths agree
to rounding. The kernels run in Triton's interpreter too (`TRITON_INTERPRET=1`), which is how they are tested on a CPU.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    import triton
    import triton.language as tl
elif importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl
else:
    triton = None

Rope = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, (tokens, head_dim) float32 each, every value twice in a row."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def available(device: torch.device) -> bool:
    """True if the kernels can run on that device."""
    return triton is not None and (device.type == "cuda" or INTERPRETED)


def norm_rope(x: torch.Tensor, norm: nn.RMSNorm, rope: Rope) -> torch.Tensor:
    """RMS norm of each head, then rotation by position, in one pass over memory.

    Args:
        x: (B, tokens, heads, head_dim), dense in its last two dimensions.
        norm: over head_dim.
        rope: the rows of these tokens.

    Returns:
        the shape and type of `x`, contiguous.
    """
    return joined_norm_rope([(x, norm)], rope)


def joined_norm_rope(parts: list[tuple[torch.Tensor, nn.RMSNorm]], rope: Rope) -> torch.Tensor:
    """Concatenate parts along their tokens, each normalised by its own norm, and rotate them by position.

    Args:
        parts: each as in `norm_rope`.
        rope: the rows of all tokens, in the order of the parts.

    Returns:
        (B, all tokens, heads, head_dim), contiguous.
    """
    first = parts[0][0]
    batch, _, heads, dim = first.shape
    out = first.new_empty(batch, sum(x.shape[1] for x, _ in parts), heads, dim)
    at = 0
    for x, norm in parts:
        tokens = x.shape[1]
        if tokens:
            cos, sin = (table[at : at + tokens] for table in rope)
            weight = norm.weight if norm.weight is not None else x.new_ones(dim)
            eps = norm.eps if norm.eps is not None else torch.finfo(x.dtype).eps
            _launch(x, weight, cos, sin, out[:, at : at + tokens], eps)
        at += tokens
    return out


def plain_norm_rope(parts: list[tuple[torch.Tensor, nn.RMSNorm]], rope: Rope) -> torch.Tensor:
    """The same as `joined_norm_rope` by PyTorch's own operations."""
    from diffusers.models.embeddings import apply_rotary_emb

    x = torch.cat([norm(x) for x, norm in parts], dim=1)
    return apply_rotary_emb(x, rope, sequence_dim=1)


def _launch(
    x: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, eps: float
) -> None:
    batch, tokens, heads, dim = x.shape
    x = x if x.stride()[2:] == (dim, 1) else x.contiguous()
    grid = (tokens, batch)
    kernel: Any = _norm_rope_kernel
    if not INTERPRETED:
        kernel = torch.library.wrap_triton(kernel)
    kernel[grid](
        x, weight, cos, sin, out, x.stride(0), x.stride(1), out.stride(0), out.stride(1), cos.stride(0), eps,
        HEADS=heads, DIM=dim, HEADS_UP=triton.next_power_of_2(heads), PAIRS=triton.next_power_of_2(dim // 2),
    )  # fmt: skip


if triton is not None:

    @triton.jit
    def _norm_rope_kernel(  # noqa: PLR0913 -- a kernel takes pointers and strides one by one
        x_ptr, weight_ptr, cos_ptr, sin_ptr, out_ptr, x_batch, x_token, out_batch, out_token, rope_token, eps,
        HEADS: tl.constexpr, DIM: tl.constexpr, HEADS_UP: tl.constexpr, PAIRS: tl.constexpr,
    ):  # fmt: skip
        # One program has all heads of one token: heads x head_dim numbers side by side, and one row of the tables.
        token, image = tl.program_id(0), tl.program_id(1)
        head, channel = tl.arange(0, HEADS_UP)[:, None], tl.arange(0, 2 * PAIRS)[None, :]
        inside, in_row = (head < HEADS) & (channel < DIM), channel < DIM
        at = head * DIM + channel
        x = tl.load(x_ptr + image * x_batch + token * x_token + at, mask=inside, other=0.0)
        wide = x.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / DIM + eps)[:, None]
        weight = tl.load(weight_ptr + channel, mask=in_row, other=0.0).to(tl.float32)
        # Rounded to the model's type between the norm and the rotation, as two operations do.
        wide = (wide * scale * weight).to(x.dtype).to(tl.float32)
        cos = tl.load(cos_ptr + token * rope_token + channel, mask=in_row, other=0.0)
        sin = tl.load(sin_ptr + token * rope_token + channel, mask=in_row, other=0.0)
        # Each pair (a, b) of neighbouring channels turns: (a cos - b sin, b cos + a sin).
        a, b = tl.split(tl.reshape(wide, (HEADS_UP, PAIRS, 2)))
        turned = tl.reshape(tl.join(-b, a), (HEADS_UP, 2 * PAIRS))
        out = out_ptr + image * out_batch + token * out_token + at
        tl.store(out, (wide * cos + turned * sin).to(x.dtype), mask=inside)


def linear_gelu(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """gelu (tanh) of a linear layer, (..., in) -> (..., out); on a GPU as the last step of the product's own kernel."""
    if not (is_dense(layer) and x.is_cuda and layer.bias is not None):
        return F.gelu(layer(x), approximate="tanh")
    # cuBLASLt applies the activation to the sums before they are rounded, and gelu on CUDA is its tanh form.
    rows = torch._addmm_activation(layer.bias, x.flatten(0, -2), layer.weight.t(), use_gelu=True)
    return rows.unflatten(0, x.shape[:-1])


def split_linear(layer: nn.Linear, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The linear layer's output for [left, right], concatenated along the channels, without that concatenation.

    Args:
        left, right: (B, tokens, channels) each; their channels together are the layer's.
    """
    cut = left.shape[-1]
    first = F.linear(left, layer.weight[:, :cut], layer.bias).flatten(0, -2)
    rows = torch.addmm(first, right.flatten(0, -2), layer.weight[:, cut:].t())
    return rows.unflatten(0, left.shape[:-1])


def is_dense(layer: nn.Module) -> bool:
    """True for a plain Linear, whose weight may be read as a matrix: neither quantized nor shared among ranks."""
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and layer.weight.is_floating_point()

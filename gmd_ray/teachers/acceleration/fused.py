"""Elementwise work of a transformer's blocks in fewer passes over memory, as Triton kernels on a GPU.

Each function has a plain path, which is the one on a CPU and for types that the kernel does not take. Both paths agree
to rounding. The kernels run in Triton's interpreter too (`TRITON_INTERPRET=1`), which is how they are tested on a CPU.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from gmd_ray.teachers.acceleration.kernels import agrees, available, power_of_2, tl, triton

Rope = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, (tokens, head_dim) float32 each, every value twice in a row."""


def joined_norm_rope(parts: list[tuple[torch.Tensor, nn.RMSNorm]], rope: Rope) -> torch.Tensor:
    """Concatenate parts along their tokens, each normalised by its own norm, and rotate them by position.

    Args:
        parts: (B, tokens, heads, head_dim) each, dense in its last two dimensions, and a norm with weights.
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
            eps = norm.eps if norm.eps is not None else torch.finfo(x.dtype).eps
            _launch(x, norm.weight, cos, sin, out, at, eps)
        at += tokens
    return out


@cache
def trustworthy(device: torch.device, dtype: torch.dtype, *, compiled: bool) -> bool:
    """True if the kernel runs on that device and agrees with the plain path there; else a warning says why not.

    Args:
        compiled: it is to run inside compiled blocks, which is tried as well.
    """
    if not available(device):
        return False
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    norm = nn.RMSNorm(128, eps=1e-6, device=device, dtype=dtype)
    parts = [(noise(2, tokens, 24, 128).to(dtype), norm) for tokens in (5, 9)]
    angles = noise(14, 64).repeat_interleave(2, dim=1)
    rope = (angles.cos(), angles.sin())
    return agrees(
        "norm and rotation",
        lambda: joined_norm_rope(parts, rope),
        lambda: plain_norm_rope(parts, rope),
        8 * torch.finfo(dtype).eps,  # the largest numbers are about 4
        compiled=compiled,
    )


def plain_norm_rope(parts: list[tuple[torch.Tensor, nn.RMSNorm]], rope: Rope) -> torch.Tensor:
    """The same as `joined_norm_rope` by PyTorch's own operations."""
    from diffusers.models.embeddings import apply_rotary_emb

    x = torch.cat([norm(x) for x, norm in parts], dim=1)
    return apply_rotary_emb(x, rope, sequence_dim=1)


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    out: torch.Tensor,
    first: int,
    eps: float,
) -> None:
    """Write the tokens of `x` to `out`, from its token `first` on."""
    batch, tokens, heads, dim = x.shape
    x = x if x.stride()[2:] == (dim, 1) else x.contiguous()
    _norm_rope_kernel[(tokens, batch)](
        x, weight, cos, sin, out, x.stride(0), x.stride(1), out.stride(0), out.stride(1), cos.stride(0), first, eps,
        heads=heads, dim=dim, heads_up=power_of_2(heads), pairs=power_of_2(dim // 2),
    )  # fmt: skip


if triton is not None:

    @triton.jit
    def _norm_rope_kernel(  # type: ignore[no-untyped-def]
        x_ptr, weight_ptr, cos_ptr, sin_ptr, out_ptr, x_batch, x_token, out_batch, out_token, rope_token, first, eps,
        heads: tl.constexpr, dim: tl.constexpr, heads_up: tl.constexpr, pairs: tl.constexpr,
    ):  # fmt: skip
        # One program has all heads of one token: heads x head_dim numbers side by side, and one row of the tables.
        token, image = tl.program_id(0), tl.program_id(1)
        head, channel = tl.arange(0, heads_up)[:, None], tl.arange(0, 2 * pairs)[None, :]
        inside, in_row = (head < heads) & (channel < dim), channel < dim
        at = head * dim + channel
        x = tl.load(x_ptr + image * x_batch + token * x_token + at, mask=inside, other=0.0)
        wide = x.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / dim + eps)[:, None]
        weight = tl.load(weight_ptr + channel, mask=in_row, other=0.0).to(tl.float32)
        # Rounded to the model's type between the norm and the rotation, as two operations do.
        wide = (wide * scale * weight).to(x.dtype).to(tl.float32)
        cos = tl.load(cos_ptr + token * rope_token + channel, mask=in_row, other=0.0)
        sin = tl.load(sin_ptr + token * rope_token + channel, mask=in_row, other=0.0)
        # Each pair (a, b) of neighbouring channels turns: (a cos - b sin, b cos + a sin).
        a, b = tl.split(tl.reshape(wide, (heads_up, pairs, 2)))
        turned = tl.reshape(tl.join(-b, a), (heads_up, 2 * pairs))
        out = out_ptr + image * out_batch + (first + token) * out_token + at
        tl.store(out, (wide * cos + turned * sin).to(x.dtype), mask=inside)


def linear_gelu(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """gelu (tanh) of a dense layer, (..., in) -> (..., out); on a GPU as the last step of the product's own kernel."""
    if not x.is_cuda:
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
    """True for a plain Linear with a bias: neither quantized nor shared among ranks."""
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and layer.bias is not None

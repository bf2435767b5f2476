"""The adaptive layer norm of a transformer's blocks in one pass over memory, with the gated sum ahead of it.

A block normalises each token over its channels, then scales and shifts it by numbers that depend on time and prompt.
In the second half of a double block the token is first the sum of a residual and a gated update. Compiled blocks do
this in two passes over each token, for PyTorch's compiler keeps a token of 3,072 channels out of the registers; the
kernel here does it in one. The plain path does the same by PyTorch's own operations, and both agree to rounding.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import functional as F

from gmd_ray.teachers.acceleration.kernels import agrees, available, power_of_2, tl, triton

EPS = 1e-6
"""Added to a token's variance, as in FLUX's layer norms."""


def modulated_norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, *, kernel: bool) -> torch.Tensor:
    """Layer norm over the channels, then `(1 + scale) * x + shift`.

    Args:
        x: (B, tokens, dim), each token dense.
        scale, shift: (B, dim), or (1, dim) for all images alike.
        kernel: use the Triton kernel, see `trustworthy_norm`.

    Returns:
        (B, tokens, dim), contiguous.
    """
    if not kernel:
        return _plain(x, scale, shift)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if out.numel():
        _launch(x, None, None, scale, shift, None, out)
    return out


def gated_sum_and_norm(
    residual: torch.Tensor,
    gate: torch.Tensor,
    update: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    *,
    kernel: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum `residual + gate * update`, and its `modulated_norm`.

    Args:
        residual, update: (B, tokens, dim), each token dense.
        gate, scale, shift: (B, dim), or (1, dim) for all images alike.
        kernel: use the Triton kernel, see `trustworthy_norm`.

    Returns:
        the sum and its norm, (B, tokens, dim) each.
    """
    if not kernel:
        total = residual + gate.unsqueeze(1) * update
        return total, _plain(total, scale, shift)
    total = torch.empty_like(residual, memory_format=torch.contiguous_format)
    out = torch.empty_like(total)
    if out.numel():
        _launch(residual, gate, update, scale, shift, total, out)
    return total, out


@cache
def trustworthy_norm(device: torch.device, dtype: torch.dtype, *, compiled: bool) -> bool:
    """True if the kernel runs on that device and agrees with the plain path there; else a warning says why not.

    Args:
        compiled: it is to run inside compiled blocks, which is tried instead.
    """
    if not available(device):
        return False
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    residual, update = noise(2, 5, 3072), noise(2, 5, 3072)
    gate, scale, shift = noise(1, 3 * 3072).chunk(3, dim=1)

    def run(*, kernel: bool) -> torch.Tensor:
        total, out = gated_sum_and_norm(residual, gate, update, scale, shift, kernel=kernel)
        return torch.cat([total, out, modulated_norm(residual, scale, shift, kernel=kernel)])

    return agrees(
        "modulated norms",
        lambda: run(kernel=True),
        lambda: run(kernel=False),
        32 * torch.finfo(dtype).eps,  # the largest numbers are about 16
        compiled=compiled,
    )


def _plain(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def _launch(
    x: torch.Tensor,
    gate: torch.Tensor | None,
    update: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    total: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    batch, tokens, dim = x.shape
    assert x.stride(-1) == scale.stride(-1) == shift.stride(-1) == 1
    adds = update is not None
    # Arguments that the kernel does not use without a sum: any tensor will do.
    gate, update, total = (gate, update, total) if adds else (scale, x, out)
    assert gate is not None
    assert update is not None
    assert total is not None
    rows = [0 if row.shape[0] == 1 else row.stride(0) for row in (gate, scale, shift)]
    _norm_kernel[(tokens, batch)](
        x, gate, update, scale, shift, total, out, x.stride(0), x.stride(1), update.stride(0), update.stride(1), *rows,
        out.stride(0), out.stride(1), EPS, dim=dim, dim_up=power_of_2(dim), adds=adds,
    )  # fmt: skip


if triton is not None:

    @triton.jit
    def _norm_kernel(  # type: ignore[no-untyped-def]
        x_ptr, gate_ptr, update_ptr, scale_ptr, shift_ptr, total_ptr, out_ptr, x_batch, x_token, update_batch,
        update_token, gate_batch, scale_batch, shift_batch, out_batch, out_token, eps, dim: tl.constexpr,
        dim_up: tl.constexpr, adds: tl.constexpr,
    ):  # fmt: skip
        # One program has one token, all of its channels in registers.
        token, image = tl.program_id(0), tl.program_id(1)
        channel = tl.arange(0, dim_up)
        inside = channel < dim
        numbers = tl.load(x_ptr + image * x_batch + token * x_token + channel, mask=inside, other=0.0)
        kind = numbers.dtype
        x = numbers.to(tl.float32)
        to = image * out_batch + token * out_token + channel
        if adds:
            update = tl.load(update_ptr + image * update_batch + token * update_token + channel, mask=inside, other=0.0)
            gate = tl.load(gate_ptr + image * gate_batch + channel, mask=inside, other=0.0)
            total = (x + gate.to(tl.float32) * update.to(tl.float32)).to(kind)
            tl.store(total_ptr + to, total, mask=inside)
            x = total.to(tl.float32)  # the norm sees the sum as others do, rounded
        mean = tl.sum(x, axis=0) / dim
        centred = tl.where(inside, x - mean, 0.0)
        rate = tl.rsqrt(tl.sum(centred * centred, axis=0) / dim + eps)
        scale = tl.load(scale_ptr + image * scale_batch + channel, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + image * shift_batch + channel, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + to, (centred * rate * (1 + scale) + shift).to(kind), mask=inside)

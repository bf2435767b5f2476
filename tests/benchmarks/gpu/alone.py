"""Parts of the teacher's work by themselves: attention, products, autoencoder, copies to the host, kernel checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from gmd_ray.teachers.acceleration.fused import trustworthy
from gmd_ray.teachers.acceleration.modulated_norm import trustworthy_norm
from tests.benchmarks.gpu.sections import clock, seconds_of

if TYPE_CHECKING:
    from tests.benchmarks.gpu.table import Table


def attention_alone(table: Table) -> None:
    """PyTorch's attention at the tokens of the table's cases."""
    size = table.files.size
    for batch, side in ((1, table.shapes.small), (table.shapes.many, table.shapes.small), (1, table.shapes.large)):
        tokens = (side // table.teacher.multiple) ** 2 + len(table.teacher.prompt.embeds)
        shape = (batch, tokens, size.heads, size.head_dim)
        q, k, v = (torch.randn(shape, device=table.teacher.device, dtype=table.teacher.projector._dtype) for _ in "qkv")
        call: Callable[[], torch.Tensor] = lambda q=q, k=k, v=v: F.scaled_dot_product_attention(  # noqa: E731
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        )
        found = seconds_of(call)
        rate = 4 * batch * size.heads * tokens**2 * size.head_dim / found
        table.sections.keep("attention", batch=batch, tokens=tokens, seconds=found)
        table.sections.say(f"attention, {batch} x {tokens} tokens: {1e6 * found:.0f} us, {rate / 1e12:.3g} TFLOP/s")


def autoencoder_alone(table: Table) -> None:
    """Both directions of the autoencoder."""
    for side in (table.shapes.small, table.shapes.large):
        images = table.images(1, side)[0].to(table.teacher.device) * 2 - 1
        with torch.no_grad():
            z = table.teacher.codec.encode(images)
            there = seconds_of(lambda images=images: table.teacher.codec.encode(images))
            back = seconds_of(lambda z=z: table.teacher.codec.decode(z))
        table.sections.keep("autoencoder", side=side, encode_s=there, decode_s=back)
        table.sections.say(f"autoencoder, {side} px: encode {1e3 * there:.1f} ms, decode {1e3 * back:.1f} ms")


def products_alone(table: Table) -> None:
    """The products of a block, at the tokens of the usual image."""
    width, device, dtype = table.files.size.width, table.teacher.device, table.teacher.projector._dtype
    rows = (table.shapes.small // table.teacher.multiple) ** 2 + len(table.teacher.prompt.embeds)
    shapes = {"q": (1, 1), "q, k, v": (1, 3), "MLP up": (1, 4), "MLP down": (4, 1), "single out": (5, 1)}
    for name, (k, n) in shapes.items():
        x, w = (torch.randn(m, k * width, device=device, dtype=dtype) for m in (rows, n * width))
        found = seconds_of(lambda x=x, w=w: F.linear(x, w), 0.05)
        rate = 2 * rows * k * n * width**2 / found / 1e12
        table.sections.keep(f"product {name}", rows=rows, seconds=found)
        table.sections.say(f"product {name}, {rows} rows: {1e6 * found:.0f} us, {rate:.3g} TFLOP/s")


def host_alone(table: Table) -> None:
    """Pinned memory, and copies to it and from it."""
    if not table.cuda:
        return
    begun = clock()
    host = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    pinned, there = clock() - begun, torch.empty(1 << 30, dtype=torch.uint8, device=table.teacher.device)
    out = seconds_of(lambda: host.copy_(there, non_blocking=True))
    back = seconds_of(lambda: there.copy_(host, non_blocking=True))
    table.sections.keep("host", pin_s=pinned, out_s=out, back_s=back)
    table.sections.say(f"host: pinning 1 GiB {pinned:.2f} s; out {1.074 / out:.1f} GB/s, back {1.074 / back:.1f} GB/s")


def checks_alone(table: Table) -> None:
    """The time that a compiled replica takes to compare Triton kernels with the plain path, when it is loaded."""
    found, begun = {}, clock()
    for name, check in (("norms", trustworthy_norm), ("norm and rotation", trustworthy)):
        check(table.teacher.device, table.teacher.projector._dtype, compiled=True)
        found[name], begun = clock() - begun, clock()
    table.sections.keep("kernel checks", **found)
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found.items())
    table.sections.say(f"kernel checks of a compiled replica: {parts}")

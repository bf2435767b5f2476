"""Triton, where it can run: on a GPU, or on a CPU in its interpreter, by which the kernels are tested there."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from gmd_ray.text import one_line

__all__ = ["INTERPRETED", "agrees", "available", "power_of_2", "tl", "triton"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Where no kernel can run, Triton is not imported: it takes a second.
if TYPE_CHECKING or ((torch.cuda.is_available() or INTERPRETED) and importlib.util.find_spec("triton") is not None):
    import triton
    import triton.language as tl
else:
    triton = tl = None

log = logging.getLogger("gmd_ray")


def available(device: torch.device) -> bool:
    """True if kernels can run on that device."""
    return triton is not None and (device.type == "cuda" or INTERPRETED)


def power_of_2(n: int) -> int:
    """The next power of two from `n` on."""
    return 1 << (n - 1).bit_length()


@torch.no_grad()
def agrees(
    name: str, run: Callable[[], torch.Tensor], plain: Callable[[], torch.Tensor], limit: float, *, compiled: bool
) -> bool:
    """True if a kernel runs and agrees with the plain path; else a warning says why it is left out.

    Args:
        run: calls the kernel on inputs on its device.
        plain: PyTorch's own operations on the same inputs.
        limit: greatest difference of the outputs.
        compiled: the kernel is to run inside compiled blocks, which is tried instead.
    """
    try:
        function = torch.compile(run, fullgraph=True, dynamic=True) if compiled else run
        gap = (function().float() - plain().float()).abs().max().item()
    except Exception as error:  # noqa: BLE001 -- a compiler may raise anything, and the plain path remains
        log.warning("the Triton kernel for %s does not run here (%s); left out", name, one_line(error))
        return False
    if gap > limit:
        log.warning("the Triton kernel for %s is off by %.1e here; left out", name, gap)
        return False
    return True

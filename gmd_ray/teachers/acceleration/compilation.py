"""Compilation of a transformer block by block, with few graphs for all sizes of images and batches."""

from __future__ import annotations

import torch
from torch import nn

RECOMPILE_LIMIT = 64
"""Graphs that PyTorch may keep for one class of blocks. With its default of 8, the ninth is an error for each image
that needs it."""


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the blocks of a transformer, each class of them once, at its first forward.

    Sizes are symbols from the first graph on, so that any number of tokens and images finds its graph. A batch of one
    has graphs of its own, since PyTorch treats a size of 1 apart. What else tells graphs apart is the route: a block
    runs plain, writes a bank, or reads one.

    Args:
        backend: PyTorch's compiler; `eager` traces alone.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    for name in ("transformer_blocks", "single_transformer_blocks"):
        for block in model.get_submodule(name).children():
            block.compile(fullgraph=True, dynamic=True, backend=backend)

"""Compiled block by block: no graph break, and no recompilation for another step or image.

See docs/decisions.md, "Memory and cost".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from gmd_ray.teachers.acceleration.compilation import compile_blocks
from gmd_ray.teachers.flux.latents import image_ids
from tests.teachers.flux.test_caches import HEIGHT, IDS, WIDTH, prepare


@pytest.mark.parametrize(
    ("tokens", "change"),
    [
        ("all", {}),
        ("image", {"cache": "input"}),
        ("image", {"true_cfg": 3.0, "solver": "midpoint"}),
        ("all", {"cache": "lockstep", "solver": "fireflow", "true_cfg": 3.0}),
        ("all", {"cache_location": "host", "cache_dtype": "fp8"}),
    ],
    ids=str,
)
@torch.no_grad()
def test_graphs_are_counted_by_kind_not_by_step(flux_dir: Path, tokens: str, change: dict[str, Any]) -> None:
    torch._dynamo.reset()
    counters.clear()
    projector, plan = prepare(flux_dir, tokens=tokens, **change)
    assert projector.modulation is not None  # its rows are arguments of a block, like the entries
    first, second = torch.randn(2, 1, HEIGHT * WIDTH // 4, 48, generator=torch.Generator().manual_seed(4))
    expected = [projector(z, IDS, plan) for z in (first, second)]
    # fullgraph: a graph break is an error. The eager backend traces as inductor does, without its minutes.
    compile_blocks(projector.model, backend="eager")
    torch.testing.assert_close(projector(first, IDS, plan), expected[0], atol=1e-5, rtol=0)
    # Each of the two classes of blocks runs plain, writes entries, or reads them.
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 3 * 2
    torch.testing.assert_close(projector(second, IDS, plan), expected[1], atol=1e-5, rtol=0)
    assert counters["stats"]["unique_graphs"] == graphs
    torch._dynamo.reset()


@torch.no_grad()
def test_sizes_and_batches_share_graphs(flux_dir: Path) -> None:
    """Two families of graphs serve everything: images alone, and images together. None is there for a first block."""
    torch._dynamo.reset()
    counters.clear()
    projector, plan = prepare(flux_dir, blocks="single")
    model, calls = projector.model, []
    compile_blocks(model, backend="eager")
    generator = torch.Generator().manual_seed(4)
    for batch, height, width in ((1, 12, 8), (1, 6, 4), (4, 12, 8), (3, 8, 8), (2, 20, 12)):
        z = torch.randn(batch, height * width // 4, 48, generator=generator)
        projector(z, image_ids(height, width), plan)
        calls.append(counters["stats"]["unique_graphs"])
    # The double block runs plain; a single block runs plain, writes, or reads.
    assert calls == [4, 4, 8, 8, 8]
    torch._dynamo.reset()

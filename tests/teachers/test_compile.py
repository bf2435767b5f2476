"""Compiled block by block: no graph break, and no recompilation for another step or image (teacher.md 2.2)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from tests.teachers.test_caches import HEIGHT, IDS, WIDTH, prepare


@pytest.mark.parametrize(("cache", "tokens"), [("kv", "all"), ("input", "image")])
@torch.no_grad()
def test_graphs_are_counted_by_kind_not_by_step(flux_dir: Path, cache: str, tokens: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    projector, plan = prepare(flux_dir, tokens=tokens, cache=cache)
    first, second = torch.randn(2, 1, HEIGHT * WIDTH // 4, 48, generator=torch.Generator().manual_seed(4))
    expected = [projector(z, IDS, plan) for z in (first, second)]
    # fullgraph: a graph break is an error. The eager backend traces as inductor does, without its minutes.
    projector.model.compile_repeated_blocks(fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(projector(first, IDS, plan), expected[0], atol=1e-5, rtol=0)
    # A block runs plain, leaving entries, or taking them.
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 3 * len(plan.blocks)
    torch.testing.assert_close(projector(second, IDS, plan), expected[1], atol=1e-5, rtol=0)
    assert counters["stats"]["unique_graphs"] == graphs
    torch._dynamo.reset()

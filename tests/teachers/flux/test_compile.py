"""Compiled block by block: no graph break, and no recompilation for another step or image.

See docs/decisions.md, "Memory and cost".
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch._dynamo.utils import counters

from gmd_ray.config import PoolConfig
from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.flux.families.flux1 import InjectingFlux
from tests.teachers.flux.test_caches import HEIGHT, IDS, WIDTH, prepare
from tests.teachers.flux.test_teacher import config, ids, images


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
    projector.model.compile_repeated_blocks(fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(projector(first, IDS, plan), expected[0], atol=1e-5, rtol=0)
    # A block runs plain, writes entries, or reads them.
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 3 * len(plan.blocks)
    torch.testing.assert_close(projector(second, IDS, plan), expected[1], atol=1e-5, rtol=0)
    assert counters["stats"]["unique_graphs"] == graphs
    torch._dynamo.reset()


@pytest.mark.parametrize("method", ["inversion", "sdedit"])
def test_a_compiled_teacher_sees_one_batch_shape(flux_dir: Path, method: str) -> None:
    """Smaller batches are filled up; other steps, images and time grids of the same size need no new graph."""
    torch._dynamo.reset()
    counters.clear()
    settings = config(flux_dir, method=method, prompt="a sharp photo", true_cfg=2.0, pool=PoolConfig(batch_size=3))
    x = images(3, 16, 24)
    plain = load_teacher(settings)
    with mock.patch.object(InjectingFlux, "compile_repeated_blocks", _trace):
        teacher = load_teacher(replace(settings, compile=True))
    assert teacher.fingerprint == plain.fingerprint
    torch.testing.assert_close(teacher.project(x, ids(x)), plain.project(x, ids(x)), atol=1e-5, rtol=0)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    for batch in (x[:1], x[1:], x[:2].flip(-1)):
        names = ids(batch)
        found = teacher.project(batch, names)
        assert found.shape == batch.shape
        torch.testing.assert_close(found, plain.project(batch, names), atol=1e-4, rtol=0)
    assert counters["stats"]["unique_graphs"] == graphs
    torch._dynamo.reset()


def _trace(model: InjectingFlux, fullgraph: bool) -> None:
    assert fullgraph
    for block in model._blocks():
        block.compile(fullgraph=fullgraph, backend="eager")

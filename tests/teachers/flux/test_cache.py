"""The cache gives back the keys and values that were put in, however late the copies are made.

See docs/decisions.md, "Memory and cost".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.flux.cache import Float8Banks, HostBanks, HostMemory, empty_packed, tensors
from gmd_ray.teachers.flux.projection import FluxProjector, ProjectionPlan
from gmd_ray.teachers.flux.sampler import Slot
from tests.teachers.flux.test_caches import HEIGHT, IDS, SETTINGS, WIDTH, prepare
from tests.teachers.flux.test_teacher import config, ids, images


class LateCopies:
    """Copies made as late as a stream may make them: when they are waited for, after all that were started before."""

    def __init__(self) -> None:
        self.queue: list[tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]] = []
        self.done = 0

    def start(self, to: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> object:
        self.queue.append((to, of))
        return len(self.queue)

    def wait(self, ticket: object) -> None:
        assert isinstance(ticket, int)
        for to, of in self.queue[self.done : ticket]:
            for target, source in zip(to, of, strict=True):
                target.copy_(source)
        self.done = max(self.done, ticket)


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return torch.randn(2, HEIGHT * WIDTH // 4, 48, generator=torch.Generator().manual_seed(4))


def on_host(projector: FluxProjector) -> LateCopies:
    storage = projector._storage
    storage.host, storage.copies = HostMemory(pinned=False, chunk=1 << 14), LateCopies()
    return storage.copies


@pytest.mark.parametrize("solver", ["euler", "midpoint", "fireflow"])
@pytest.mark.parametrize("resident", [2, 3, 4, 5, 99])
@pytest.mark.parametrize("cache", ["kv", "input"])
@torch.no_grad()
def test_host_equals_device(flux_dir: Path, latents: torch.Tensor, solver: str, resident: int, cache: str) -> None:
    projector, plan = prepare(flux_dir, steps=6, solver=solver, cache=cache, true_cfg=3.0)
    plan = replace(plan, inject_steps=6)
    expected = projector(latents, IDS, plan)
    copies = on_host(projector)
    away = replace(plan, cache_location="host", resident=resident)
    assert torch.equal(projector(latents, IDS, away), expected)
    kept = len(plan.injected_slots())
    assert len(copies.queue) == 2 * max(0, kept - resident)
    # The second projection reuses the memory of the first.
    chunks = list(projector._storage.host._chunks)
    assert torch.equal(projector(latents, IDS, away), expected)
    assert [a is b for a, b in zip(projector._storage.host._chunks, chunks, strict=True)] == [True] * len(chunks)


@pytest.mark.parametrize(("blocks", "tokens", "tensors"), SETTINGS)
@torch.no_grad()
def test_every_injection_by_way_of_the_host(
    flux_dir: Path, latents: torch.Tensor, blocks: str, tokens: str, tensors: str
) -> None:
    projector, plan = prepare(flux_dir, blocks, tokens, tensors)
    plan = replace(plan, inject_steps=3)
    expected = projector(latents, IDS, plan)
    assert torch.equal(projector(latents, IDS, replace(plan, cache_location="host")), expected)


def test_a_missing_wait_would_be_seen() -> None:
    """The late copies would reveal a missing wait: without waits, other values come back."""
    order = [Slot(i, False) for i in range(4)]

    class Forgetful(LateCopies):
        def wait(self, ticket: object) -> None:
            pass

    def there_and_back(copies: LateCopies) -> list[float]:
        host = HostBanks(lambda: {"block": torch.zeros(3)}, order, 2, HostMemory(pinned=False, chunk=4096), copies)
        for slot in reversed(order):
            tensors(host.open(slot))[0].fill_(slot.interval)
        found = []
        for slot in order:
            bank = host.pop(slot, None)
            assert bank is not None
            found.append(tensors(bank)[0].mean().item())
        assert host.pop(order[0], None) is None
        return found

    assert there_and_back(LateCopies()) == [0, 1, 2, 3]
    assert there_and_back(Forgetful()) != [0, 1, 2, 3]


@pytest.mark.parametrize("location", ["device", "host"])
@pytest.mark.parametrize("cache", ["kv", "input"])
@torch.no_grad()
def test_eight_bits_are_near_and_no_more(flux_dir: Path, latents: torch.Tensor, location: str, cache: str) -> None:
    projector, plan = prepare(flux_dir, cache=cache)
    expected = projector(latents, IDS, plan)
    on_host(projector)
    rounded = replace(plan, cache_dtype="fp8", cache_location=location)
    error = (projector(latents, IDS, rounded) - expected).abs().max() / expected.abs().max()
    assert 1e-6 < error < 0.02
    assert torch.equal(projector(latents, IDS, rounded), projector(latents, IDS, rounded))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_of_eight_bits(dtype: torch.dtype) -> None:
    x = torch.randn(2, 7, 3, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[0, 0] = 0
    x[1, 1, :, ::2] *= 1e-4
    whole = {"block": (None, torch.empty_like(x))}

    class One(dict):
        def open(self, slot: Slot) -> dict:
            self[slot] = empty_packed(whole)
            return self[slot]

    inner = One()
    banks = Float8Banks(inner, whole)
    tensors(banks.open(Slot(0, False)))[0].copy_(x)
    back = tensors(banks.pop(Slot(0, False), None))[0]
    slack = 0 if dtype == torch.float32 else 2**-7  # the rounding of bfloat16 itself
    bound = x.abs() * (1 / 16 + slack) + x.abs().amax(-1, keepdim=True) * (1 / 458752 + slack / 64)
    assert ((back - x).abs() <= bound).all()
    assert (back != x).any()
    assert not inner


def test_memory_of_eight_bits() -> None:
    bank = {"a": (torch.empty(1, 5, 2, 64), torch.empty(1, 5, 2, 64)), "b": torch.empty(1, 5, 128)}
    numbers, scales = 3 * 5 * 128, (2 * 5 * 2 + 5) * 4
    assert sum(x.nbytes for x in tensors(empty_packed(bank))) == numbers + scales


def test_host_memory_is_cut_without_overlap() -> None:
    memory = HostMemory(pinned=False, chunk=4096)
    like = [
        torch.empty(n, dtype=d) for n, d in ((100, torch.float32), (7, torch.float8_e4m3fn), (3000, torch.bfloat16))
    ]
    for _ in range(2):
        memory.rewind()
        cut = [memory.like(x) for x in like]
        for i, x in enumerate(cut):
            x.copy_(torch.full(x.shape, float(i)))
        assert [x.float().unique().tolist() for x in cut] == [[0.0], [1.0], [2.0]]
        assert [(x.shape, x.dtype) for x in cut] == [(x.shape, x.dtype) for x in like]
    assert len(memory._chunks) == 2


def test_settings_of_place_are_not_in_the_fingerprint_and_eight_bits_are(flux_dir: Path) -> None:
    base = load_teacher(config(flux_dir, solver="midpoint"))
    host = load_teacher(replace(base.cfg, cache_location="host"))
    rounded = load_teacher(replace(base.cfg, cache_dtype="fp8"))
    x = images(2, 16, 24)
    assert base.fingerprint == host.fingerprint != rounded.fingerprint
    assert torch.equal(base.project(x, ids(x)), host.project(x, ids(x)))
    assert not torch.equal(base.project(x, ids(x)), rounded.project(x, ids(x)))


def test_a_plan_names_every_place(flux_dir: Path) -> None:
    plan: ProjectionPlan = load_teacher(config(flux_dir, cache_location="host", cache_dtype="fp8"))._plan(24)
    assert (plan.cache_location, plan.cache_dtype) == ("host", "fp8")

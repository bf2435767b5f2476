"""Rows of the adaptive norms computed once for a grid equal those that each forward computes (docs/decisions.md)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.cost.dimensions import FluxDimensions
from gmd_ray.teachers.flux.families.flux1 import InjectingFlux
from gmd_ray.teachers.flux.modulation import KEPT_ROWS, Conditioning, ModulationTables
from gmd_ray.teachers.flux.projection import FluxProjector
from tests.teachers.conftest import make_flux
from tests.teachers.flux.test_caches import HEIGHT, IDS, WIDTH, prepare
from tests.teachers.flux.test_teacher import config, ids, images

CPU = torch.device("cpu")


def plain_projector(path: Path) -> FluxProjector:
    model = InjectingFlux.from_pretrained(path / "transformer").eval().requires_grad_(False)
    model.use_injecting_attention()
    return FluxProjector(model)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"true_cfg": 3.0},  # two prompts, two pooled vectors
        {"true_cfg": 3.0, "true_cfg_interval": (0.4, 0.9)},
        {"solver": "midpoint"},
        {"solver": "fireflow", "true_cfg": 3.0},
        {"cache": "lockstep"},
        {"strength": 0.6, "cache": "input"},
    ],
    ids=str,
)
@torch.no_grad()
def test_a_projection_by_tables_equals_the_plain_one(flux_dir: Path, change: dict[str, Any]) -> None:
    projector, plan = prepare(flux_dir, **change)
    assert projector.modulation is not None
    latents = torch.randn(2, HEIGHT * WIDTH // 4, 48, generator=torch.Generator().manual_seed(4))
    expected = plain_projector(flux_dir)(latents, IDS, plan)
    torch.testing.assert_close(projector(latents, IDS, plan), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_every_row_is_computed_at_once_and_before_the_first_forward(flux_dir: Path) -> None:
    projector, plan = prepare(flux_dir, true_cfg=3.0, solver="midpoint")
    tables = projector.modulation
    assert tables is not None
    calls = []
    tables._embedder.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    latents = torch.randn(1, HEIGHT * WIDTH // 4, 48)
    for _ in range(2):
        projector(latents, IDS, plan)
    assert calls == [len(set(plan.conditionings()))] == [6 + 2 * 6]
    # 12 columns of a double block, 3 of each of two single ones, 2 of the end, 32 wide, float32.
    assert tables.nbytes() == calls[0] * (12 + 2 * 3 + 2) * 32 * 4


@torch.no_grad()
def test_the_weights_are_out_of_the_model(flux_dir: Path) -> None:
    plain = plain_projector(flux_dir).model
    size = FluxDimensions.from_config(dict(plain.config))
    model = plain_projector(flux_dir).model
    tables = ModulationTables(model, CPU)
    assert sum(p.numel() for p in model.parameters()) == size.parameters() - size.modulation_parameters()
    tables.restore()
    assert {n: p.data_ptr() for n, p in model.named_parameters()}.keys() == dict(plain.named_parameters()).keys()


@torch.no_grad()
def test_rows_of_other_grids_do_not_pile_up(flux_dir: Path) -> None:
    projector, plan = prepare(flux_dir)
    tables = projector.modulation
    assert tables is not None
    keys = [Conditioning(i / KEPT_ROWS, 2.0, plan.prompt) for i in range(KEPT_ROWS)]
    tables.prepare(keys[:-1])
    kept = {k: v.clone() for k, v in tables.rows(keys[0]).items()}
    assert tables.nbytes() < 2 * KEPT_ROWS * (12 + 6 + 2) * 32 * 4
    tables.prepare([replace_time(keys[0], 2.0), replace_time(keys[0], 3.0)])
    assert tables.nbytes() == 2 * (12 + 6 + 2) * 32 * 4
    for name, row in tables.rows(keys[0]).items():
        torch.testing.assert_close(row, kept[name], atol=1e-6, rtol=0)


@torch.no_grad()
def test_what_is_wanted_is_computed_at_once_even_where_the_tables_overflow(flux_dir: Path) -> None:
    projector, plan = prepare(flux_dir)
    tables = projector.modulation
    assert tables is not None
    keys = [Conditioning(i / KEPT_ROWS, 2.0, plan.prompt) for i in range(KEPT_ROWS + 2)]
    tables.prepare(keys[:KEPT_ROWS])
    calls: list[int] = []
    tables._embedder.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    wanted = keys[KEPT_ROWS - 3 :]  # three are kept already, two are not
    tables.prepare(wanted)
    for key in wanted:
        tables.rows(key)
    assert calls == [5]


def replace_time(key: Conditioning, t: float) -> Conditioning:
    return key._replace(t=t)


def test_a_model_without_guidance_and_sdedit(tmp_path: Path) -> None:
    path = make_flux(tmp_path, autoencoder=False, guidance=False)
    x = images(2, 16, 24)
    for method in ("inversion", "sdedit"):
        teacher = load_teacher(config(path, method=method, prompt="a sharp photo"))
        found = teacher.project(x, ids(x))
        teacher.projector.modulation.restore()
        teacher.projector = FluxProjector(teacher.model)
        torch.testing.assert_close(found, teacher.project(x, ids(x)), atol=1e-5, rtol=0)


def test_weights_that_wait_elsewhere_give_the_same_rows(flux_dir: Path) -> None:
    """A home that differs from the device: on a machine without accelerator, the CPU under another name."""
    x = images(1, 16, 24)
    near, far = (load_teacher(config(flux_dir, modulation=where)) for where in ("device", "host"))
    far.projector.modulation._home = torch.device("cpu", 0)
    assert far.projector.modulation._home != near.projector.modulation._home
    assert torch.equal(near.project(x, ids(x)), far.project(x, ids(x)))
    assert near.fingerprint == far.fingerprint == load_teacher(replace(near.cfg, modulation="auto")).fingerprint

"""The cost of a whole projection, from a directory's config.json files, against the teacher at work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gmd_ray.config import InjectionConfig, PoolConfig, TeacherConfig
from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.cost.dimensions import FluxDimensions
from gmd_ray.teachers.cost.flops import projection_cost
from gmd_ray.teachers.cost.workload import TeacherFiles, Workload
from gmd_ray.teachers.flux.cache import Float8Banks, tensors
from gmd_ray.teachers.flux.projection import FluxProjector
from tests.teachers.cost.test_flops import FLUX_DEV

INJECTION = InjectionConfig(blocks="all", tokens="all", steps=2)


@pytest.mark.parametrize(
    ("autoencoder", "change"),
    [
        (False, {}),
        (True, {"true_cfg": 3.0}),
        (False, {"true_cfg": 3.0, "true_cfg_interval": (0.3, 0.7), "solver": "midpoint"}),
        (False, {"true_cfg": 3.0, "solver": "fireflow", "cache": "lockstep"}),
        (False, {"cache": "input"}),
        (False, {"cache": "input", "injection": InjectionConfig(blocks="single", tokens="image", steps=1)}),
        (False, {"cache": "input", "injection": InjectionConfig(blocks="double", tensors="v", steps=None)}),
        (False, {"cache": "lockstep", "injection": InjectionConfig(blocks="single", tensors="v", steps=2)}),
        (False, {"cache_dtype": "fp8", "guidance": 1.0}),  # one guidance and prompt for both passes: fewer rows
        (True, {"tile": 16, "tile_overlap": 8, "solver": "midpoint"}),
        (False, {"method": "sdedit", "strength": 0.5, "true_cfg": 2.0}),
        (False, {"method": "kontext", "true_cfg": 2.0, "true_cfg_interval": (0.5, 1.0)}),
        (True, {"method": "kontext", "tile": 16, "tile_overlap": 8, "solver": "midpoint"}),
        (False, {"injection": InjectionConfig(steps=0)}),
    ],
    ids=str,
)
def test_a_whole_projection(
    flux_dir: Path, flux_vae_dir: Path, autoencoder: bool, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLOPs and cache of `Teacher.project`, autoencoder and tiles included, from the config.json files alone."""
    path = flux_vae_dir if autoencoder else flux_dir
    settings: dict[str, Any] = {"prompt": "a sharp photo", "injection": INJECTION, "max_sequence_length": 5, "steps": 3}
    settings["pool"] = PoolConfig(batch_size=2)  # one tile of each image in a forward
    cfg = TeacherConfig(path=str(path), **{**settings, **change})
    cost = projection_cost(Workload.from_config(TeacherFiles.read(path), cfg, 2, 22, 30, number_bytes=4))
    teacher = load_teacher(cfg)
    held = []
    reconstruct = FluxProjector.reconstruct

    def look(self: FluxProjector, noise: torch.Tensor, kept: Any, *args: Any) -> torch.Tensor:
        held.append(0 if teacher.cfg.cache == "lockstep" else held_bytes(kept))
        return reconstruct(self, noise, kept, *args)

    monkeypatch.setattr(FluxProjector, "reconstruct", look)
    forwards: list[int] = []
    teacher.model.proj_out.register_forward_hook(lambda *_: forwards.append(1))
    images = torch.rand(2, 3, 22, 30, generator=torch.Generator().manual_seed(2))
    for tables in (cost.table_flops, 0):  # the second batch finds its rows
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            teacher.project(images, ["a", "b"])
        assert counter.get_total_flops() == cost.flops + cost.codec_flops + tables
    assert len(forwards) == 2 * cost.forwards
    assert (cost.codec_flops > 0) == autoencoder
    if cfg.cache != "lockstep":
        assert (set(held) or {0}) == {cost.cache_bytes}  # Kontext does not call the projector's passes


def held_bytes(kept: Any) -> int:
    """Bytes that wait when the inversion has ended, the buffer of an 8-bit cache included."""
    if isinstance(kept, Float8Banks):
        kept._pack()
        return held_bytes(kept._inner) + sum(x.nbytes for x in tensors(kept._whole))
    return sum(x.nbytes for bank in kept.values() for x in tensors(bank))


@pytest.mark.parametrize(("side", "expected"), [(512, 37.7), (1024, 165.4)])
def test_tera_flops_of_kontext(side: int, expected: float) -> None:
    """Latents and the image's own tokens, and no inversion: docs/decisions.md, "Memory and cost"."""
    files = TeacherFiles(FluxDimensions.from_config(FLUX_DEV), {"block_out_channels": [1] * 4}, {})
    cfg = TeacherConfig(method="kontext", steps=28, max_sequence_length=512)
    cost = projection_cost(Workload.from_config(files, cfg, 1, side, side))
    assert cost.forwards == 28
    assert cost.flops / 28 / 1e12 == pytest.approx(expected, abs=0.06)
    assert cost.cache_bytes == 0
    sdedit = TeacherConfig(method="sdedit", steps=28)
    edit = projection_cost(Workload.from_config(files, sdedit, 1, side, side))
    tokens = (side // 16) ** 2
    assert cost.activation_bytes / edit.activation_bytes == pytest.approx((2 * tokens + 512) / (tokens + 512))

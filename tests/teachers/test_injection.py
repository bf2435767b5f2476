"""Injection by share of depth and of intervals: the same rule for every family of models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gmd_ray.config import TeacherConfig
from gmd_ray.config.load import load_config
from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.cost.dimensions import FluxDimensions, Injection
from gmd_ray.teachers.flux.blocks import block_names, select_blocks
from gmd_ray.teachers.injection import injected_intervals, part_of
from tests.teachers.cost.test_flops import FLUX_DEV


@pytest.mark.parametrize(
    ("count", "share", "part"),
    [(25, 0.2, 5), (9, 0.5, 5), (5, 0.5, 3), (10, 0.01, 1), (3, 1.0, 3), (57, 0.316, 18), (0, 0.5, 0)],
)
def test_a_part_is_rounded_and_never_empty(count: int, share: float, part: int) -> None:
    assert part_of(count, share) == part


def test_both_shares_are_read_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("teacher:\n  injection: {blocks: last:0.5, steps: 0.2}\n")
    given = ["teacher.injection.blocks=last:0.5", "teacher.injection.steps=0.2"]
    for args in (given, [f"config={tmp_path / 'mine.yaml'}"]):
        teacher = load_config(args).teacher
        assert teacher.injection.blocks == "last:0.5"
        assert injected_intervals(teacher.injection, teacher.steps) == 5
    whole = load_config(["teacher.injection.steps=2"]).teacher.injection
    assert type(whole.steps) is int
    assert injected_intervals(whole, 25) == 2
    assert injected_intervals(replace(whole, steps=None), 25) == 25


def test_a_share_of_depth_counts_double_and_single_blocks() -> None:
    """The share that `late_single` has of FLUX.1-dev's blocks selects the same 18 of 57."""
    names = block_names(19, 38)
    assert select_blocks(names, "last:0.316") == select_blocks(names, "late_single")
    assert select_blocks(names, "last:1") == names
    assert select_blocks(names, "last:0.8")[:2] == ["transformer_blocks.11", "transformer_blocks.12"]


def test_the_cost_model_counts_the_same_blocks_and_intervals() -> None:
    size = FluxDimensions.from_config(FLUX_DEV)
    cfg = TeacherConfig()
    cfg.injection.blocks, cfg.injection.steps = "last:0.8", 0.5
    found = Injection.from_config(cfg, size)
    assert (found.double, found.single, found.steps) == (8, 38, 13)


def test_a_share_gives_the_fingerprint_of_the_blocks_it_selects(flux_dir: Path) -> None:
    """A store that was made with names and numbers goes on with shares that mean the same, and the reverse."""
    cfg = TeacherConfig(path=str(flux_dir), steps=4, dtype="float32", device="cpu")
    cfg.injection.blocks, cfg.injection.steps = ["single_transformer_blocks.0", "single_transformer_blocks.1"], 2
    named = load_teacher(cfg)
    cfg.injection.blocks, cfg.injection.steps = "last:0.5", 0.5
    shared = load_teacher(cfg)
    assert shared.fingerprint == named.fingerprint


def test_a_unet_takes_shares_in_the_order_of_its_forward_pass(sd_dir: Path) -> None:
    cfg = TeacherConfig(path=str(sd_dir), method="ddim", steps=4, dtype="float32", device="cpu")
    cfg.injection.blocks, cfg.injection.steps = "all", None
    every = load_teacher(cfg)
    cfg.injection.blocks, cfg.injection.steps = "last:0.5", 0.5
    half = load_teacher(cfg)
    assert half.inject_steps == 2  # type: ignore[attr-defined]
    blocks = half.blocks  # type: ignore[attr-defined]
    assert len(blocks) == part_of(len(every.blocks), 0.5)  # type: ignore[attr-defined]
    assert blocks[-1].startswith("up_blocks")
    assert not any(name.startswith("down_blocks") for name in blocks)

"""`teacher.preset`: what it fills, what wins over it, and names that do not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray.config import Config
from gmd_ray.config.load import load_config, save_config
from gmd_ray.errors import ConfigError
from gmd_ray.teachers.flux.blocks import block_names, select_blocks

NAMES = ["gmd", "early", "gmd-literal", "rf-solver", "kv-edit", "vital", "none", "sdedit", "kontext", "ddim"]


def test_gmd_is_the_default() -> None:
    teacher = load_config(["teacher.preset=gmd"]).teacher
    teacher.preset = None
    assert teacher == Config().teacher


def test_every_preset_differs() -> None:
    teachers = [load_config([f"teacher.preset={name}"]).teacher for name in NAMES]
    for teacher in teachers:
        teacher.preset = None
    assert all(a != b for i, a in enumerate(teachers) for b in teachers[:i])


def test_early_fits_models_of_any_depth() -> None:
    """Shares, where `gmd` has the number of a block: half the intervals, and the same length of each."""
    early, gmd = (load_config([f"teacher.preset={name}"]).teacher for name in ("early", "gmd"))
    assert (early.injection.blocks, early.injection.steps) == ("last:0.5", 0.2)
    assert early.strength / early.steps == pytest.approx(gmd.strength / gmd.steps, rel=0.05)
    assert len(select_blocks(block_names(5, 20), early.injection.blocks)) == 13
    assert len(select_blocks(block_names(1, 2), early.injection.blocks)) == 2


def test_given_fields_win_whatever_their_order() -> None:
    for args in (["teacher.steps=9", "teacher.preset=rf-solver"], ["teacher.preset=rf-solver", "teacher.steps=9"]):
        teacher = load_config(args).teacher
        assert (teacher.steps, teacher.solver, teacher.injection.tensors) == (9, "midpoint", "v")


def test_it_replaces_what_an_earlier_source_set(tmp_path: Path) -> None:
    """The experiment says steps and injection too; naming a method on the command line is the later word."""
    teacher = load_config(["preset=toy", "teacher.preset=kv-edit"]).teacher
    assert (teacher.steps, teacher.injection.tokens, teacher.injection.steps) == (24, "image", None)
    assert teacher.prompt == load_config(["preset=toy"]).teacher.prompt, "not a field of the method"
    file = tmp_path / "mine.yaml"
    file.write_text("teacher: {preset: vital, steps: 30}\n")
    teacher = load_config([f"config={file}"]).teacher
    assert (teacher.steps, teacher.nudge, len(teacher.injection.blocks)) == (30, 1.15, 9)
    assert load_config([f"config={file}", "teacher.preset=null"]).teacher.nudge == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_config_reads_back(name: str, tmp_path: Path) -> None:
    cfg = load_config([f"teacher.preset={name}", "teacher.guidance=7"])
    save_config(cfg, tmp_path / "config.yaml")
    assert load_config([f"config={tmp_path / 'config.yaml'}"]) == cfg


def test_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["teacher.preset=rf_solver"])
    assert str(caught.value) == "teacher.preset=rf_solver: did you mean 'rf-solver'?"
    file = tmp_path / "mine.yaml"
    file.write_text("teacher: {preset: [gmd]}\n")
    with pytest.raises(ConfigError, match=r"teacher\.preset=\['gmd'\] must be text"):
        load_config([f"config={file}"])

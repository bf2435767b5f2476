"""The trainers of the toy models: they learn, they are seeded, and what they write loads as any other model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gmd_ray.config import InjectionConfig, ScorerConfig, StudentConfig, TeacherConfig
from gmd_ray.demo import train_models as models
from gmd_ray.demo.flow_matching import PROMPTS
from gmd_ray.demo.toy.train_scorer import ScorerRecipe, train_scorer
from gmd_ray.demo.toy.train_student import StudentRecipe, train_student
from gmd_ray.demo.toy.train_teacher import TeacherRecipe, sample_batch, train_teacher
from gmd_ray.quality import load_scorer
from gmd_ray.students import load_student
from gmd_ray.teachers import load_teacher

TINY = TeacherRecipe(pool=40, legs=((3, 6), (4, 4)), batch=8, heads=1, head_dim=16, single_blocks=1)


def test_student_learns_and_is_seeded(tmp_path: Path) -> None:
    short = StudentRecipe(pool=20, steps=4, batch=4)
    first = train_student(tmp_path / "a.safetensors", short)
    train_student(tmp_path / "b.safetensors", short)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    longer = train_student(tmp_path / "c.safetensors", StudentRecipe(pool=20, steps=60, batch=4))
    assert longer["loss"] < first["loss"]
    x = torch.rand(1, 3, 64, 64)
    assert load_student(StudentConfig(path=str(tmp_path / "c.safetensors"))).restore(x).shape == x.shape


def test_teacher_writes_a_directory_that_projects(tmp_path: Path) -> None:
    figures = train_teacher(tmp_path, TINY)
    assert np.isfinite(figures["loss"])
    # 3 + 3 steps of crops at 8 images, then 1 step of whole images at 2.
    assert figures["images"] == 6 * 8 + 2
    settings = InjectionConfig(blocks="all", tokens="image", steps=1)
    cfg = TeacherConfig(path=str(tmp_path), steps=2, strength=0.6, prompt="hq", true_cfg=1.5, injection=settings)
    x = torch.rand(1, 3, 64, 64)
    assert load_teacher(cfg).project(x, ["a"]).shape == x.shape


def test_batches_hold_clean_degraded_and_null_in_their_shares() -> None:
    pool = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    pixels, labels = sample_batch(pool, np.random.default_rng(1), 600, 32)
    assert pixels.shape == (600, 3, 32, 32)
    assert -1 <= pixels.min() < pixels.max() <= 1
    shares = np.bincount(labels.numpy(), minlength=len(PROMPTS)) / 600
    np.testing.assert_allclose(shares, [0.2, 0.4, 0.4], atol=0.06)


def test_scorer_ranks_harm(tmp_path: Path) -> None:
    figures = train_scorer(tmp_path, ScorerRecipe(pool=260, steps=40, batch=16))
    assert figures["held_out_correlation"] > 0.5
    assert load_scorer(ScorerConfig(path=str(tmp_path))).higher_is_better


def test_shipped_models_are_those_of_the_recipes() -> None:
    """The figures beside the weights belong to the recipes in the code, and the weights load."""
    folder = Path(models.__file__).parent / "toy" / "weights"
    record = json.loads((folder / models.FIGURES).read_text())
    for name, recipe in (("teacher", TeacherRecipe()), ("student", StudentRecipe()), ("scorer", ScorerRecipe())):
        assert record[name]["recipe"] == json.loads(json.dumps(recipe.__dict__))
    assert sum(f.stat().st_size for f in folder.rglob("*")) < 16e6
    assert record["scorer"]["figures"]["held_out_correlation"] > 0.9


@pytest.mark.slow
def test_shipped_teacher_pulls_towards_clean() -> None:
    """On images that nothing was trained on: the projection is nearer to the truth than its input, on average."""
    from gmd_ray.config.load import load_config
    from gmd_ray.demo.toy import world
    from gmd_ray.images.degradation.degradations import sample_rng
    from gmd_ray.images.files.encode import to_tensor

    cfg = load_config(["preset=toy"])
    clean = [world.draw(5, "teacher test", i) for i in range(12)]
    lq = [world.TARGET(image, sample_rng("teacher test", i)) for i, image in enumerate(clean)]
    restored = load_student(cfg.student).restore(to_tensor(lq))
    projected = load_teacher(cfg.teacher).project(restored, [str(i) for i in range(12)])
    truth = to_tensor(clean)
    before, after = ((x - truth).square().mean((1, 2, 3)).log10().mul(-10) for x in (restored, projected))
    assert (after - before).mean() > 0.3, "dB"

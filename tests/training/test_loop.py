"""The workers' loop, run in this process (Ray Train's local mode) against a plain torch loop."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from torch import Tensor

from gmd_ray.config import Config
from gmd_ray.errors import ConfigError, DataError, GmdError
from gmd_ray.students import load_student
from gmd_ray.training.loop import train
from gmd_ray.training.plan import Plan, make_plan
from tests.training.oracle import batches_of, plain_training
from tests.training.toys import make_config


def _train_here(cfg: Config, name: str = "adapted") -> tuple[Plan, Any]:
    plan = make_plan(cfg, name, None)
    trainer = TorchTrainer(train, train_loop_config={"plan": plan}, scaling_config=ScalingConfig(num_workers=0))
    return plan, trainer.fit().return_value


def test_loop_is_plain_training_and_exports_the_average(tmp_path: Path) -> None:
    plan, outcome = _train_here(make_config(tmp_path, clip_grad_norm=0.05))
    assert outcome is None
    before, after = (torch.load(path, weights_only=True) for path in (plan.cfg.student.path, plan.student))
    expected = plain_training(plan)
    assert after.keys() == before.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(after[key], expected[key], rtol=0, atol=1e-6)
    assert max(float((after[key] - before[key]).abs().max()) for key in before) > 1e-4


def test_memory_layout_changes_nothing_but_time(tmp_path: Path) -> None:
    plan, outcome = _train_here(make_config(tmp_path, channels_last=True))
    assert outcome is None
    after, expected = torch.load(plan.student, weights_only=True), plain_training(plan)
    for key, value in expected.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=1e-5)
        assert after[key].is_contiguous()


def test_parts_of_uneven_ranks_add_up_to_the_gradient_of_the_global_batch(tmp_path: Path) -> None:
    plan = make_plan(make_config(tmp_path, batch_size=5), "adapted", None)
    student = load_student(plan.cfg.student)

    def gradient(batch: tuple[Tensor, Tensor], weight: float) -> list[Tensor]:
        student.module.zero_grad()
        loss, _ = student.training_loss(*batch)
        (loss * weight).backward()
        return [p.grad.clone() for p in student.module.parameters() if p.grad is not None]

    whole = gradient(batches_of(plan)(1), 1.0)
    parts = []
    for rank in range(2):
        batch = batches_of(plan, rank, 2)(1)
        assert len(batch[0]) == (3, 2)[rank]
        parts.append(gradient(batch, 2 * len(batch[0]) / 5))
    for one, a, b in zip(whole, *parts, strict=True):
        torch.testing.assert_close((a + b) / 2, one, rtol=1e-4, atol=1e-7)


def test_source_only_needs_no_pair_store(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, steps=2)
    plan, outcome = _train_here(dataclasses.replace(cfg, out=str(tmp_path / "elsewhere")), "source_only")
    assert outcome is None
    assert plan.target is None
    assert Path(plan.student) == tmp_path / "elsewhere" / "finetune" / "source_only" / "student.pth"
    assert Path(plan.student).is_file()


def test_ratio_zero_needs_no_source(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, steps=2, source_ratio=0.0)
    cfg.source.hq = None
    plan, outcome = _train_here(cfg)
    assert outcome is None
    assert plan.source == ()
    assert Path(plan.student).is_file()


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_loss_that_diverges_ends_with_the_step(tmp_path: Path, loss: str) -> None:
    plan, outcome = _train_here(make_config(tmp_path, lr=1e30, warmup_steps=0, loss=loss))
    assert isinstance(outcome, GmdError)
    assert str(outcome).startswith("fine-tune adapted: loss or gradient is not finite at step 2")
    assert not Path(plan.student).exists()


def test_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    (tmp_path / "source" / "lq" / "4.png").write_bytes(b"no image")
    _, outcome = _train_here(cfg)
    assert isinstance(outcome, DataError)
    assert "4.png" in str(outcome)


def test_setting_that_only_the_worker_can_refuse(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    cfg.source.lq, cfg.source.degradation, cfg.source.degradation_args = None, "none", {"scale": 2}
    _, outcome = _train_here(cfg)
    assert isinstance(outcome, ConfigError)
    assert "source.degradation_args.scale=1" in str(outcome)

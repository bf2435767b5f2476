"""FSDP2 against DDP, and the checkpoints that they share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from gmd_ray.training import finetune, finetuned_path
from gmd_ray.training.run_files import read_curve
from gmd_ray.training.spec import make_spec
from gmd_ray.training.worker.parallel import blocks, gathered
from tests.training.oracle import plain_training
from tests.training.toys import make_config


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.body = nn.ModuleList([nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]), nn.ReLU(), nn.Linear(2, 2)])
        self.tail = nn.Linear(2, 2)
        last = self.body[3]
        assert isinstance(last, nn.Linear)
        self.tail.weight = last.weight


def test_blocks_are_members_of_outermost_lists_with_weights_of_their_own() -> None:
    network = nn.Sequential(_Tied(), nn.Conv2d(1, 1, 1))
    tied = network[0]
    assert isinstance(tied, _Tied)
    assert blocks(network) == [tied.body[0], tied.body[1][0]]  # type: ignore[index]


def _shapes(node: Any) -> Any:
    if isinstance(node, Tensor):
        return type(node).__name__, node.dtype, tuple(node.shape)
    if isinstance(node, dict):
        return {key: _shapes(value) for key, value in node.items()}
    return [_shapes(value) for value in node] if isinstance(node, list) else type(node)


def test_only_who_keeps_a_state_holds_it(tmp_path: Path) -> None:
    weights = torch.rand(3, 2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        sharded = distribute_tensor(weights, init_device_mesh("cpu", (1,)), [Shard(0)])
        state = {"state": {0: {"step": torch.tensor(4.0), "exp_avg": sharded}}, "groups": [{"lr": 0.5, "on": [1, 2]}]}
        kept, gone = gathered(state, keep=True), gathered(state, keep=False)
    finally:
        torch.distributed.destroy_process_group()
    assert type(kept["state"][0]["exp_avg"]) is Tensor
    assert torch.equal(kept["state"][0]["exp_avg"], weights)
    assert gone == {"state": {0: {"step": None, "exp_avg": None}}, "groups": [{"lr": 0.5, "on": [1, 2]}]}
    assert kept["groups"] == gone["groups"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_sharded_training_is_plain_training_and_its_checkpoints_are_ddps(tmp_path: Path) -> None:
    settings = {"num_workers": 2, "batch_size": 5, "accumulate": 2, "loss": "l2", "validate_every": 6}
    cfg = make_config(tmp_path, strategy="fsdp", **settings)
    cfg.evaluation.source_hq, cfg.evaluation.source_lq = cfg.source.hq, cfg.source.lq
    student = Path(finetuned_path(cfg, "adapted"))
    train = student.parent / "train"
    expected = plain_training(make_spec(cfg, "adapted", None))
    curves, states = {}, {}
    for strategy, resumed_from in (("fsdp", None), ("ddp", 6)):  # a run begun with one goes on with the other
        cfg.training.strategy = strategy
        assert finetune(cfg, "adapted").resumed_from == resumed_from
        curves[strategy] = read_curve(student.parent / "curve.jsonl")
        states[strategy] = torch.load(train / "step_00000012" / "state.pt", weights_only=True)
        after = torch.load(student, weights_only=True)
        for key, value in expected.items():
            torch.testing.assert_close(after[key], value, rtol=0, atol=1e-5)
        student.unlink()
        if strategy == "fsdp":
            shutil.rmtree(train / "step_00000012")
    names = ("loss", "loss_source", "loss_target", "grad_norm", "val_psnr")
    for a, b in zip(curves["ddp"], curves["fsdp"], strict=True):
        assert a["step"] == b["step"]
        assert {n: a[n] for n in names if n in a} == pytest.approx({n: b[n] for n in names if n in b}, rel=1e-5)
    assert [point["step"] for point in curves["fsdp"] if "val_psnr" in point] == [6, 12]
    assert _shapes(states["fsdp"]) == _shapes(states["ddp"])

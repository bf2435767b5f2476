"""Schedule and moving average."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gmd_ray.config import TrainingConfig
from gmd_ray.training.worker.optim import Ema, learning_rate, make_optimizer


def test_warm_up_then_constant() -> None:
    cfg = TrainingConfig(steps=10, lr=1.0, warmup_steps=4)
    assert [learning_rate(step, cfg) for step in range(10)] == [0.25, 0.5, 0.75] + [1.0] * 7


def test_cosine_equals_torch_and_ends_at_zero() -> None:
    cfg = TrainingConfig(steps=30, lr=0.3, warmup_steps=0, schedule="cosine")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    for step in range(30):
        assert learning_rate(step, cfg) == pytest.approx(oracle.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        oracle.step()
    assert learning_rate(30, cfg) == pytest.approx(0, abs=1e-12)


def test_multistep_equals_torch() -> None:
    cfg = TrainingConfig(steps=30, lr=0.3, warmup_steps=0, schedule="multistep", milestones=[5, 6, 20], lr_decay=0.25)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    oracle = torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 6, 20], 0.25)
    for step in range(30):
        assert learning_rate(step, cfg) == pytest.approx(oracle.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        oracle.step()


def test_warm_up_longer_than_the_run_never_leaves_it() -> None:
    cfg = TrainingConfig(steps=5, lr=1.0, warmup_steps=500, schedule="cosine")
    assert [learning_rate(step, cfg) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_optimizer_takes_the_settings(name: str) -> None:
    cfg = TrainingConfig(optimizer=name, lr=0.1, betas=(0.8, 0.7), weight_decay=0.5)
    module = nn.Linear(2, 2)
    module.bias.requires_grad = False
    optimizer = make_optimizer(module, cfg)
    assert type(optimizer).__name__.lower() == name
    (group,) = optimizer.param_groups
    assert group["params"] == [module.weight]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.1, (0.8, 0.7), 0.5)


def test_ema_is_the_weighted_sum_of_all_states() -> None:
    module = nn.BatchNorm1d(3)
    ema = Ema(module, 0.9)
    states = [{key: value.clone() for key, value in module.state_dict().items()}]
    generator = torch.Generator().manual_seed(0)
    for _ in range(7):
        with torch.no_grad():
            module.weight.copy_(torch.randn(3, generator=generator))
        module(torch.randn(5, 3, generator=generator))  # moves the running mean and the batch counter
        ema.update()
        states.append({key: value.clone() for key, value in module.state_dict().items()})
    n = len(states) - 1
    for key in ("weight", "running_mean", "running_var"):
        weights = [0.9**n] + [0.1 * 0.9 ** (n - i) for i in range(1, n + 1)]
        assert math.isclose(sum(weights), 1)
        expected = sum(w * state[key] for w, state in zip(weights, states, strict=True))
        torch.testing.assert_close(ema.state[key], expected)
    assert ema.state["num_batches_tracked"] == 7


def test_ema_switched_off_is_the_module() -> None:
    module = nn.Linear(2, 2)
    ema = Ema(module, 0.0)
    with torch.no_grad():
        module.weight.fill_(3)
    ema.update()
    assert torch.equal(ema.state["weight"], module.weight)


def test_ema_takes_the_modules_place_for_a_while() -> None:
    module = nn.BatchNorm1d(3)
    ema = Ema(module, 0.5)
    with torch.no_grad():
        module.weight.fill_(3)
        module.running_mean.fill_(4)  # type: ignore[union-attr]
    module.num_batches_tracked.add_(6)  # type: ignore[union-attr]
    ema.update()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with ema.in_place():
        assert module.weight.tolist() == [2] * 3
        assert module.running_mean.tolist() == [2] * 3  # type: ignore[union-attr,operator]
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])


def test_ema_goes_on_from_a_saved_state() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    ema = Ema(second, 0.5)
    ema.load(first.state_dict())
    ema.update()
    torch.testing.assert_close(ema.state["weight"], (first.weight + second.weight).detach() / 2)

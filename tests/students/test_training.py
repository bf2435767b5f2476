"""Gradients, losses and the effects of training mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gmd_ray.config import StudentConfig
from gmd_ray.students import load_student
from tests.students.ddp import train_in_ddp
from tests.students.networks import NETWORKS, save_network, student_of

BT601 = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)


def pair(student, batch=2, side=32):
    return torch.rand(batch, 3, side, side), torch.rand(batch, 3, side * student.scale, side * student.scale)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_reaches_every_parameter_that_trains(tmp_path, name):
    path = tmp_path / "student.pth"
    save_network(path, name)
    student = student_of(path)
    student.module.train()
    loss, logs = student.training_loss(*pair(student))
    loss.backward()
    idle = {key for key, parameter in student.module.named_parameters() if parameter.grad is None}
    # SPAN's inference convolutions are folded from the trained ones.
    assert idle == {key for key, _ in student.module.named_parameters() if ".eval_conv." in key}
    assert loss.ndim == 0
    assert logs["loss"] == pytest.approx(loss.item())


def test_a_few_steps_fit_a_pair(tmp_path):
    path = tmp_path / "student.pth"
    save_network(path, "swinir_x2")
    student = student_of(path)
    student.module.train()
    lq, hq = pair(student, batch=1, side=16)
    optimizer = torch.optim.AdamW(student.module.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss, logs = student.training_loss(lq, hq)
        loss.backward()
        optimizer.step()
        losses.append(logs["loss"])
    assert losses[-1] < 0.7 * losses[0]


def test_losses_against_their_formulas(tmp_path):
    path = tmp_path / "student.pth"
    save_network(path, "nafnet")
    student = student_of(path)
    lq, hq = pair(student)
    difference = student.module(lq) - hq
    expected = {
        "l1": difference.abs().mean(),
        "l2": difference.pow(2).mean(),
        "charbonnier": (difference.pow(2) + 1e-9).sqrt().mean(),
    }
    for kind, value in expected.items():
        loss, logs = load_student(StudentConfig(path=str(path), device="cpu"), loss=kind).training_loss(lq, hq)
        torch.testing.assert_close(loss, value)
        assert logs["psnr"] == pytest.approx(-10 * difference.pow(2).mean().log10().item(), abs=1e-4)


def test_loss_is_not_clamped(tmp_path):
    """A clamp would kill the gradient where the network overshoots."""
    path = tmp_path / "student.pth"
    save_network(path, "dncnn", lambda w: {k: v + 3 if k == "model.16.bias" else v for k, v in w.items()})
    student = student_of(path)
    lq = torch.rand(1, 3, 16, 16)
    assert student.module(lq).max() < 0
    loss, _ = student.training_loss(lq, lq)
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in student.module.parameters())


def test_gray_student_learns_the_luma(tmp_path):
    path = tmp_path / "student.pth"
    save_network(path, "dncnn_gray_bn")
    student = student_of(path)
    student.module.eval()
    lq, hq = pair(student)
    loss, _ = student.training_loss(lq, hq)
    expected = (student.module(lq)[:, 0] - (hq * BT601).sum(1)).abs().mean()
    torch.testing.assert_close(loss, expected)


def test_the_wrapped_module_is_the_one_that_is_called(tmp_path):
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, lq):
            self.calls += 1
            return self.inner(lq)

    path = tmp_path / "student.pth"
    save_network(path, "dncnn")
    student = student_of(path)
    wrapper, batch = Wrapper(student.module), pair(student)
    loss, _ = student.training_loss(*batch, forward=wrapper)
    assert wrapper.calls == 1
    torch.testing.assert_close(loss, student.training_loss(*batch)[0])


def test_ddp_trains_it(tmp_path):
    path = tmp_path / "student.pth"
    save_network(path, "swinir_x1")
    student = student_of(path)
    student.module.train()
    train_in_ddp(student, [pair(student), pair(student)], tmp_path)
    assert all(parameter.grad is not None for parameter in student.module.parameters())


def test_stochastic_depth_is_off_unless_asked_for(tmp_path):
    path = tmp_path / "student.pth"
    save_network(path, "swinir_x1")
    image = torch.rand(8, 3, 16, 16)

    def spread(student):
        student.module.train()
        torch.manual_seed(0)
        outputs = [student.module(image) for _ in range(4)]
        return max((outputs[0] - output).abs().max().item() for output in outputs)

    cfg = StudentConfig(path=str(path), device="cpu")
    assert spread(load_student(cfg)) == 0
    assert spread(load_student(cfg, stochastic_depth=True)) > 0

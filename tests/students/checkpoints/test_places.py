"""State dicts in the wrappers of training tools: weights are found, averages first, and saved back in place."""

from __future__ import annotations

import argparse
import logging
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gmd_ray.errors import ModelError
from gmd_ray.students.common import say_once
from tests.students.checkpoints.test_layout import assert_same_form, train_a_step
from tests.students.networks import NETWORKS, save_network, student_of

Weights = dict[str, Tensor]
ROOT = Path(__file__).resolve().parents[3]
INPUTS = ROOT.parent / "shared" / "inputs" / "checkpoints"


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def raw(weights: Weights) -> Weights:
    """Make the raw weights beside an average: other values under the same keys."""
    return {key: value + 0.3 for key, value in weights.items()}


def averaged_model(weights: Weights) -> Weights:
    """Return the form of torch.optim.swa_utils.AveragedModel."""
    network = NETWORKS["nafnet"]()
    network.load_state_dict(weights)
    return dict(torch.optim.swa_utils.AveragedModel(network).state_dict())


WRAPPED: dict[str, Callable[[Weights], Any]] = {
    "compiled": lambda w: {"params": prefixed("_orig_mod.", w)},
    "averaged model": averaged_model,
    "data parallel of compiled": lambda w: prefixed("module._orig_mod.", w),
    "compiled of data parallel": lambda w: {"model": prefixed("_orig_mod.module.", w)},
    "twice parallel": lambda w: prefixed("module.module.", w),
    "lightning": lambda w: {"epoch": 1, "global_step": 9, "state_dict": prefixed("model.", w), "callbacks": {}},
    "lightning of compiled": lambda w: {"state_dict": prefixed("net._orig_mod.", w), "loops": {}},
    "lightning with a loss": lambda w: {"state_dict": prefixed("net_g.", w) | {"loss.vgg.weight": torch.ones(3)}},
    "lightning, own name": lambda w: {"state_dict": prefixed("my_restorer.", w) | {"criterion.scale": torch.ones(3)}},
    "a GAN": lambda w: {"state_dict": prefixed("generator.", w) | prefixed("discriminator.", {"a": torch.ones(4)})},
    "nested wrappers": lambda w: {"checkpoint": {"model": {"state_dict": prefixed("module.", w)}}, "epoch": 3},
    "own wrapper": lambda w: {"best_weights": w, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "namespace": lambda w: {"args": argparse.Namespace(lr=1e-4, out=pathlib.Path("/runs")), "state_dict": w},
    "numpy numbers": lambda w: {"state_dict": w, "best_psnr": np.float64(31.2), "epoch": np.int64(3)},
    "numpy array": lambda w: {"state_dict": w, "mean": np.array([0.4, 0.5, 0.6], np.float32)},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapped_state_dict_is_found_and_written_back(tmp_path: Path, kind: str) -> None:
    plain, source, saved = (tmp_path / name for name in ("plain.pth", "source.pth", "saved.pth"))
    save_network(plain, "nafnet")
    save_network(source, "nafnet", WRAPPED[kind])
    student, image = student_of(source), torch.rand(1, 3, 24, 32)
    assert torch.equal(student.restore(image), student_of(plain).restore(image))
    train_a_step(student)
    student.save(saved)
    before, after = (torch.load(path, weights_only=False) for path in (source, saved))
    if kind != "numpy array":
        assert_same_form(before, after)
    torch.testing.assert_close(student_of(saved).restore(image), student.restore(image), rtol=0, atol=1e-6)


AVERAGED: dict[str, Callable[[Weights], Any]] = {
    "timm": lambda w: {"state_dict": raw(w), "state_dict_ema": w},
    "deit": lambda w: {"model": raw(w), "model_ema": w, "optimizer": {}},
    "diffusion": lambda w: {"model": raw(w), "ema": w},
    "basicsr": lambda w: {"params": raw(w), "params_ema": w},
    "spelled out": lambda w: {"model_state_dict": raw(w), "ema_state_dict": w},
    "gan": lambda w: {"net_g": raw(w), "net_g_ema": w, "net_d": {"a": torch.ones(4)}},
    "of a wrapper": lambda w: {"state_dict": prefixed("module.", raw(w)), "state_dict_ema": w},
    "each in its own": lambda w: {"model": {"state_dict": raw(w)}, "ema": {"decay": 0.99, "shadow": w}},
    "lightning": lambda w: {"state_dict": prefixed("model.", raw(w)) | prefixed("ema_model.", w)},
    "lightning, module": lambda w: {"state_dict": prefixed("net.", raw(w)) | prefixed("net_ema.module.", w)},
    "ema_pytorch": lambda w: (
        prefixed("online_model.", raw(w)) | prefixed("ema_model.", w) | {"initted": torch.tensor(True)}
    ),
    "averaged model beside": lambda w: {"model": raw(w), "model_ema": averaged_model(w)},
}


@pytest.mark.parametrize("kind", AVERAGED)
def test_the_average_is_taken_and_both_are_replaced(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain, source, saved = (tmp_path / name for name in ("plain.pth", "source.pth", "saved.pth"))
    weights = save_network(plain, "nafnet")
    save_network(source, "nafnet", AVERAGED[kind])
    image = torch.rand(1, 3, 24, 32)
    say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="gmd_ray"):
        student = student_of(source)
        student_of(source)
    [line] = [record.getMessage() for record in caplog.records if "source.pth" in record.getMessage()]
    assert "takes the averaged weights" in line
    assert "saving replaces" in line
    assert torch.equal(student.restore(image), student_of(plain).restore(image))
    train_a_step(student)
    student.save(saved)
    before, after = (torch.load(path, weights_only=True) for path in (source, saved))
    assert_same_form(before, after)
    versions = tensors(after, "intro.weight")
    assert len(versions) == 2
    assert torch.equal(*versions)
    assert not torch.equal(versions[0], weights["intro.weight"])


def tensors(tree: Any, end: str) -> list[Tensor]:
    """Find the tensors in a tree whose key ends with `end`."""
    if not isinstance(tree, dict):
        return []
    return [
        tensor
        for key, value in tree.items()
        for tensor in ([value] if isinstance(value, Tensor) and str(key).endswith(end) else tensors(value, end))
    ]


def test_an_average_in_another_form_is_told_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The average of torch_ema is a list, in which only the order identifies the tensors."""
    source, saved = tmp_path / "source.pth", tmp_path / "saved.pth"
    save_network(source, "nafnet", lambda w: {"model": w, "ema": {"shadow_params": [*w.values()], "decay": 0.9}})
    say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="gmd_ray"):
        student = student_of(source)
    assert any("ema has an unknown form" in record.getMessage() for record in caplog.records)
    student.save(saved)
    assert torch.load(saved, weights_only=True)["ema"]["decay"] == 0.9


def test_an_average_without_statistics_is_not_taken_and_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, source = tmp_path / "plain.pth", tmp_path / "source.pth"
    save_network(plain, "dncnn_gray_bn")

    def wrap(weights: Weights) -> Any:
        return {"model": weights, "ema": {k: v + 1 for k, v in weights.items() if "running" not in k}}

    save_network(source, "dncnn_gray_bn", wrap)
    say_once.cache_clear()
    image = torch.rand(1, 3, 16, 16)
    with caplog.at_level(logging.INFO, logger="gmd_ray"):
        student = student_of(source)
    assert any("takes the weights model; saving replaces ema too" in record.getMessage() for record in caplog.records)
    assert torch.equal(student.restore(image), student_of(plain).restore(image))
    train_a_step(student)
    student.save(tmp_path / "saved.pth")
    after = torch.load(tmp_path / "saved.pth", weights_only=True)
    assert len(after["ema"]) < len(after["model"])
    assert all(torch.equal(value, after["model"][key]) for key, value in after["ema"].items())


def test_a_file_with_one_set_of_weights_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_network(tmp_path / "a.pth", "nafnet", lambda w: {"params": w, "ema_decay": 0.999, "epoch": 3})
    say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="gmd_ray"):
        student_of(tmp_path / "a.pth")
    assert caplog.records == []


def test_several_networks_are_named_and_not_guessed(tmp_path: Path) -> None:
    first = save_network(tmp_path / "a.pth", "nafnet")
    second = save_network(tmp_path / "b.pth", "dncnn")
    torch.save({"stage_one": first, "stage_two": second}, tmp_path / "two.pth")
    with pytest.raises(ModelError, match=r"several networks \(stage_one, stage_two\)"):
        student_of(tmp_path / "two.pth")


def test_an_average_within_safetensors(tmp_path: Path) -> None:
    source, saved = tmp_path / "source.safetensors", tmp_path / "saved.safetensors"
    weights = save_network(tmp_path / "plain.pth", "nafnet")
    save_file(prefixed("model.", raw(weights)) | prefixed("ema_model.", weights), source)
    student = student_of(source)
    train_a_step(student)
    student.save(saved)
    after = load_file(saved)
    assert after.keys() == load_file(source).keys()
    assert all(torch.equal(after[f"model.{key}"], after[f"ema_model.{key}"]) for key in weights)


@pytest.mark.parametrize("name", ["model_best.pth.tar", "pytorch_model.bin", "last.ckpt", "weights.PT"])
def test_old_and_other_endings(tmp_path: Path, name: str) -> None:
    save_network(tmp_path / name, "nafnet", lambda w: {"state_dict": w})
    student = student_of(tmp_path / name)
    saved = tmp_path / f"student{Path(name).suffix}"
    student.save(saved)
    assert student_of(saved).fingerprint == student.fingerprint


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt"])
def test_a_file_cut_at_any_point_is_one_line(tmp_path: Path, suffix: str) -> None:
    weights = save_network(tmp_path / "whole.pth", "dncnn")
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".safetensors":
        save_file(weights, whole)
    elif suffix == ".ckpt":
        torch.save(weights, whole, _use_new_zipfile_serialization=False)
    data = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    for length in [*range(0, 300, 7), *range(300, len(data) - 300, 331), *range(len(data) - 300, len(data), 7)]:
        cut.write_bytes(data[:length])
        with pytest.raises(ModelError) as caught:
            student_of(cut)
        assert "\n" not in str(caught.value)
        assert str(cut) in str(caught.value)
    student_of(whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, value: float) -> None:
    def spoil(weights: Weights) -> Any:
        weights["encoders.0.0.conv1.weight"][0, 0] = value
        return {"params": prefixed("module.", weights)}

    save_network(tmp_path / "a.pth", "nafnet", spoil)
    with pytest.raises(ModelError, match=r"a\.pth: module\.encoders\.0\.0\.conv1\.weight holds NaN or infinity"):
        student_of(tmp_path / "a.pth")


@pytest.mark.skipif(not INPUTS.is_dir(), reason="the shared inputs are not here")
def test_the_inputs_of_strangers() -> None:
    image = torch.rand(1, 3, 24, 32)
    expected = student_of(INPUTS / "plain.pth").restore(image)
    names = ["compiled.pth", "averaged_model.pth", "ema_beside.pth", "numpy_scalar.pth", "model_best.pth.tar"]
    for name in names:
        assert torch.equal(student_of(INPUTS / name).restore(image), expected), name
    with pytest.raises(ModelError, match="Git LFS pointer"):
        student_of(INPUTS / "lfs_pointer.pth")

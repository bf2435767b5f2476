"""Weights go back in the file layout they came in, and spandrel reads them there."""

from __future__ import annotations

import copy
import fractions
import pickle
import struct
from collections import OrderedDict

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from spandrel import ModelLoader
from spandrel.architectures.DnCNN import DnCNN
from torch import nn

from gmd_ray.config import StudentConfig
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.students import load_student
from gmd_ray.students.checkpoints.layout import map_keys
from tests.students.networks import NETWORKS, save_network, student_of


def train_a_step(student, lr=1e-2):
    student.module.train()
    optimizer = torch.optim.AdamW(student.module.parameters(), lr=lr)
    lq = torch.rand(2, 3, 32, 32)
    loss, _ = student.training_loss(lq, torch.rand(2, 3, 32 * student.scale, 32 * student.scale))
    loss.backward()
    optimizer.step()


def spandrel_restores(path, image):
    descriptor = ModelLoader("cpu").load_from_file(path)
    seen = image[:, :1] if descriptor.input_channels == 1 else image
    return descriptor(seen.clone()).expand(-1, 3, -1, -1).clone()


@pytest.mark.parametrize("name", NETWORKS)
def test_trained_weights_come_back_through_spandrel(tmp_path, name):
    source, saved = tmp_path / "source.pth", tmp_path / "saved" / "student.pth"
    weights = save_network(source, name, lambda w: {"params": w})
    student = student_of(source)
    image = torch.rand(1, 1, 33, 30).expand(-1, 3, -1, -1)  # gray, so that luma is the value itself
    before = student.restore(image)
    train_a_step(student)
    after = student.restore(image)
    assert (after - before).abs().max() > 1e-4
    student.save(saved)
    tree = torch.load(saved, weights_only=True)
    assert list(tree) == ["params"]
    assert list(tree["params"]) == list(weights)
    assert all(tree["params"][key].shape == value.shape for key, value in weights.items())
    assert all(tree["params"][key].dtype == value.dtype for key, value in weights.items())
    torch.testing.assert_close(spandrel_restores(saved, image), after, rtol=0, atol=1e-5)
    trained = [key for key, value in weights.items() if not torch.equal(tree["params"][key], value)]
    buffers = [key for key, value in weights.items() if not value.is_floating_point() or key.endswith("attn_mask")]
    assert len(trained) >= 0.8 * (len(weights) - len(buffers))
    assert list(saved.parent.iterdir()) == [saved]  # no draft is left


def with_versions(state, weights):
    """Make what `network.state_dict()` returns: an OrderedDict with `_metadata`."""
    state.update(weights)
    return state


WRAPPERS = {
    "bare": lambda w: w,
    "ordered_with_versions": lambda w: with_versions(NETWORKS["nafnet"]().state_dict(), w),
    "params": lambda w: {"params": w},
    "params_ema": lambda w: {"params_ema": w},
    "both": lambda w: {"params": {k: v + 1 for k, v in w.items()}, "params_ema": w},
    "state_dict": lambda w: {"epoch": 7, "state_dict": w, "note": "best", "losses": [0.5, torch.ones(2)]},
    "model_state_dict": lambda w: {"model_state_dict": w, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}},
    "model": lambda w: {"model": w, "iter": 3},
    "net": lambda w: {"net": w},
    "nested": lambda w: {"model": {"params_ema": w, "params": w}, "iter": 3},
    "single": lambda w: {"generator": w},
    "module": lambda w: {f"module.{k}": v for k, v in w.items()},
    "netG": lambda w: {"state_dict": {f"module.netG.{k}": v for k, v in w.items()}},
}


def assert_same_form(before, after) -> None:
    """Equal trees, but for the values of tensors."""
    assert type(before) is type(after)
    if isinstance(before, dict):
        assert list(before) == list(after)
        for key in before:
            assert_same_form(before[key], after[key])
    elif isinstance(before, torch.Tensor):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
    elif isinstance(before, list):
        assert len(before) == len(after)
    else:
        assert before == after


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrapper_prefix_and_other_entries_are_kept(tmp_path, kind):
    source, saved = tmp_path / "source.pth", tmp_path / "saved.pth"
    save_network(source, "nafnet", WRAPPERS[kind])
    student = student_of(source)
    train_a_step(student)
    student.save(saved)
    before, after = (torch.load(path, weights_only=True) for path in (source, saved))
    assert_same_form(before, after)
    image = torch.rand(1, 3, 32, 32)
    restored = student.restore(image)
    torch.testing.assert_close(student_of(saved).restore(image), restored, rtol=0, atol=1e-6)
    torch.testing.assert_close(spandrel_restores(saved, image), restored, rtol=0, atol=1e-6)
    if kind == "both":
        assert all(torch.equal(after["params"][key], after["params_ema"][key]) for key in after["params"])
    if kind == "model_state_dict":
        assert after["optimizer"]["state"][0]["step"] == 3
    if kind == "ordered_with_versions":
        assert isinstance(after, OrderedDict)
        assert after._metadata == before._metadata


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_each_key_keeps_its_precision(tmp_path, dtype):
    source, saved = tmp_path / "source.pth", tmp_path / "saved.pth"
    save_network(source, "swinir_x2", lambda w: {k: v.to(dtype) if k.endswith("weight") else v for k, v in w.items()})
    student = student_of(source)
    train_a_step(student)
    assert all(parameter.dtype == torch.float32 for parameter in student.module.parameters())
    master = copy.deepcopy(student.module.state_dict())
    student.save(saved)
    assert all(torch.equal(value, master[key]) for key, value in student.module.state_dict().items())  # not rounded
    before, after = (torch.load(path, weights_only=True) for path in (source, saved))
    assert {key: value.dtype for key, value in before.items()} == {key: value.dtype for key, value in after.items()}
    key = "layers.0.residual_group.blocks.0.attn.qkv.weight"
    assert torch.equal(after[key], master[f"network.{key}"].to(dtype))
    image = torch.rand(1, 3, 32, 32)
    assert (student_of(saved).restore(image) - student.restore(image)).abs().max() < 0.02


def test_safetensors_keeps_its_header(tmp_path):
    source, saved = tmp_path / "source.safetensors", tmp_path / "saved.safetensors"
    weights = save_network(tmp_path / "unused.pth", "esrgan_basicsr")
    save_file(weights, source, metadata={"author": "me", "format": "pt"})
    student = student_of(source)
    train_a_step(student)
    student.save(saved)
    with safe_open(saved, "pt") as file:
        assert file.metadata() == {"author": "me", "format": "pt"}
    assert load_file(saved).keys() == weights.keys()
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(spandrel_restores(saved, image), student.restore(image), rtol=0, atol=1e-6)


def test_batch_norm_statistics_are_saved(tmp_path):
    source, saved = tmp_path / "source.pth", tmp_path / "saved.pth"
    weights = save_network(source, "dncnn_gray_bn")
    student = student_of(source)
    train_a_step(student)
    student.save(saved)
    after = torch.load(saved, weights_only=True)
    assert not torch.equal(after["model.3.running_mean"], weights["model.3.running_mean"])
    assert after["model.3.num_batches_tracked"] == weights["model.3.num_batches_tracked"] + 1


def test_folded_weights_are_saved_as_trained(tmp_path):
    """SPAN's inference convolutions follow from the trained ones; other tools read them from the file."""
    source, saved = tmp_path / "source.pth", tmp_path / "saved.pth"
    save_network(source, "span")
    student = student_of(source)
    train_a_step(student)
    student.save(saved)
    after = torch.load(saved, weights_only=True)
    student.restore(torch.rand(1, 3, 16, 16))  # folds
    folded = student.module.state_dict()["network.conv_1.eval_conv.weight"]
    torch.testing.assert_close(after["conv_1.eval_conv.weight"], folded)


def test_keys_that_the_loader_makes_up_or_drops(tmp_path):
    """SPAN's `no_norm` is replaced on load, OmniSR's counters are deleted: the file keeps its own."""
    source, saved = tmp_path / "source.pth", tmp_path / "saved.pth"
    save_network(source, "span", lambda w: {k: torch.full((1,), 5.0) if k == "no_norm" else v for k, v in w.items()})
    student_of(source).save(saved)
    before, after = (torch.load(path, weights_only=True) for path in (source, saved))
    assert list(before) == list(after)
    assert after["no_norm"] == 5


def test_save_replaces_whole_files_only(tmp_path):
    path = tmp_path / "student.pth"
    save_network(path, "dncnn")
    content = path.read_bytes()
    student = student_of(path)
    with torch.no_grad():
        next(student.module.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match="diverged"):
        student.save(path)
    with pytest.raises(ModelError, match=r"keeps the layout it came in, a \.pth file"):
        student.save(tmp_path / "student.safetensors")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [content]


def test_save_notices_weights_that_read_back_otherwise(tmp_path):
    path = tmp_path / "student.pth"
    save_network(path, "swinir_x1")
    student = student_of(path)
    student.module.network.img_range = 2.0  # a setting that no weight tells, so the file cannot carry it
    with pytest.raises(ModelError, match="SwinIR gives different output after reloading"):
        student.save(tmp_path / "saved.pth")
    assert list(tmp_path.iterdir()) == [path]


def test_key_map_tells_equal_tensors_apart_and_refuses_merged_ones():
    class Two(nn.Module):
        def __init__(self, weights):
            super().__init__()
            self.first, self.second = (nn.Parameter(weights[key].clone()) for key in ("a", "b"))

    class Merged(nn.Module):
        def __init__(self, weights):
            super().__init__()
            self.sum = nn.Parameter(torch.cat([weights["a"], weights["b"]]))

    weights = {"a": torch.zeros(2), "b": torch.zeros(2), "unused": torch.ones(3)}
    assert map_keys(weights, Two(weights), Two) == {"a": "first", "b": "second"}
    with pytest.raises(ModelError, match="sum"):
        map_keys(weights, Merged(weights), Merged)


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    return path


WEIGHTS = {"a.weight": torch.zeros(3)}
UNREADABLE = {
    "objects": ("a.pth", {"state_dict": WEIGHTS, "when": fractions.Fraction(1)}, r"fractions\.Fraction.*extract"),
    "unknown architecture": ("a.pth", WEIGHTS, r"no architecture known to spandrel.*a\.weight.*student\.factory"),
    "no weights": ("a.pth", {"epoch": 3}, "no weights in it, only epoch"),
    "no dict": ("a.ckpt", [1, 2], "holds a list"),
    "text": ("a.pt", b"hello", "damaged, cut off or no checkpoint"),
    "empty": ("a.pth", b"", "an empty file"),
    "no safetensors": ("a.safetensors", b"hello", "not a safetensors file"),
    "pointer": ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
    "pointer to safetensors": ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "page": ("a.pth", b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
    "other kind": ("a.pth", struct.pack("<Q", 2) + b"{}", r"rename it to \.safetensors"),
    "other kind too": ("a.safetensors", b"PK\x03\x04....", r"rename it to \.pth"),
    "archive": ("a.pth.tar", b"\x1f\x8b....", "an archive; unpack it"),
    "newer pickle": ("a.pth", pickle.dumps({"a": 1}, protocol=4), "damaged"),
    "ending": ("a.onnx", b"", "unknown ending"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_files_are_refused_in_one_line(tmp_path, case):
    name, content, message = UNREADABLE[case]
    with pytest.raises(ModelError, match=message) as caught:
        student_of(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_truncated_missing_and_misshapen_files(tmp_path):
    path = tmp_path / "student.pth"
    weights = save_network(path, "dncnn")
    with pytest.raises(ModelError, match="cut off: its end is missing"):
        student_of(write(tmp_path / "cut.pth", path.read_bytes()[:2000]))
    with pytest.raises(ModelError, match="does not exist"):
        student_of(tmp_path / "nowhere.pth")
    with pytest.raises(ModelError, match="looks like DnCNN but does not load as one") as caught:
        student_of(write(tmp_path / "bad.pth", weights | {"model.4.weight": torch.zeros(8, 7, 3, 3)}))
    assert "\n" not in str(caught.value)


def test_other_than_gray_and_rgb_is_refused(tmp_path):
    network = DnCNN(in_nc=4, out_nc=4, nc=8, nb=9, act_mode="R")
    with pytest.raises(ModelError, match="maps 4 to 4 channels"):
        student_of(write(tmp_path / "rgba.pth", network.state_dict()))


def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "program.pt"
    torch.jit.script(nn.Conv2d(3, 3, 1)).save(path)
    with pytest.raises(ModelError, match="TorchScript"):
        student_of(path)


def test_bad_settings_are_named(tmp_path):
    path = tmp_path / "student.pth"
    save_network(path, "dncnn")
    with pytest.raises(ConfigError, match=r"student\.path"):
        load_student(StudentConfig())
    with pytest.raises(ConfigError, match="bfloat16"):
        student_of(path, dtype="bfloat61")
    with pytest.raises(ConfigError, match="'charbonnier'"):
        load_student(StudentConfig(path=str(path), device="cpu"), loss="charbonier")
    with pytest.raises(ConfigError, match=r"student\.tile=16"):
        student_of(path, tile=16, tile_overlap=16)
    with pytest.raises(ConfigError, match=r"student\.sampling_steps=4: for latent diffusion"):
        student_of(path, sampling_steps=4)
    with pytest.raises(ConfigError, match=r"student\.gradient_checkpointing=True: for latent diffusion"):
        student_of(path, gradient_checkpointing=True)
    with pytest.raises(ConfigError, match=r"student\.device=gpu"):
        load_student(StudentConfig(path=str(path), device="gpu"))

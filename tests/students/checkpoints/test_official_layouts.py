"""Files laid out as published checkpoints, full size: what comes back has their keys, shapes, order and wrapper."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.students.checkpoints import official
from tests.students.networks import student_of

LAYOUTS = {
    # name: (its tensors, parameters in millions as published, architecture, scale)
    "swinir": (official.swinir_classical_x4, 11.90, "SwinIR", 4),
    "nafnet": (official.nafnet_gopro_width32, 17.11, "NAFNet", 1),
    "realesrgan": (official.realesrgan_x4plus, 16.70, "ESRGAN", 4),
}
WRAPPERS = {
    "bare": lambda w: w,
    "params": lambda w: {"params": w},
    "params_ema": lambda w: {"params_ema": w},
    "both": lambda w: {"params": dict(w), "params_ema": w},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_layout_comes_back_with_trained_weights(tmp_path, name):
    shapes, millions, architecture, scale = LAYOUTS[name]
    weights = official.filled(shapes())
    learnt = [key for key in weights if not key.endswith(("attn_mask", "relative_position_index"))]
    assert round(sum(weights[key].numel() for key in learnt) / 1e6, 2) == millions
    source, saved = tmp_path / "source.pth", tmp_path / "saved.pth"
    torch.save({"params_ema": weights}, source)
    student = student_of(source)
    assert (student.architecture, student.scale) == (architecture, scale)
    with torch.no_grad():
        for parameter in student.module.parameters():
            parameter.mul_(1.5)
    student.save(saved)
    tree = torch.load(saved, weights_only=True)
    assert list(tree) == ["params_ema"]
    assert list(tree["params_ema"]) == list(weights)
    for key, value in tree["params_ema"].items():
        assert (value.shape, value.dtype) == (weights[key].shape, weights[key].dtype)
    # Each tensor under its own name: 1.5 times what was there.
    assert all(torch.equal(tree["params_ema"][key], weights[key] * 1.5) for key in learnt)


def small(name):
    """Make weights of a published layout with one block of its body, the number of which the loader reads."""
    shapes = LAYOUTS[name][0]()
    return official.filled(
        (key, shape) for key, shape in shapes if not key.startswith("body.") or key.startswith("body.0.")
    )


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_esrgan_keys_are_mapped_back_in_every_wrapper(tmp_path, wrapper):
    source, saved = tmp_path / "source.pth", tmp_path / "saved.pth"
    weights = small("realesrgan")
    torch.save(WRAPPERS[wrapper](weights), source)
    student_of(source).save(saved)
    before, after = (torch.load(path, weights_only=True) for path in (source, saved))
    assert list(before) == list(after)
    for key in {"bare": [None], "both": ["params", "params_ema"]}.get(wrapper, [wrapper]):
        old, new = (before, after) if key is None else (before[key], after[key])
        assert list(old) == list(new) == list(weights)
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_esrgan_keys_are_mapped_back_in_safetensors(tmp_path):
    weights = small("realesrgan")
    save_file(weights, tmp_path / "source.safetensors")
    student_of(tmp_path / "source.safetensors").save(tmp_path / "saved.safetensors")
    again = load_file(tmp_path / "saved.safetensors")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[key], weights[key]) for key in weights)

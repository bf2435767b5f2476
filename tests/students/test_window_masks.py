"""Masks of shifted windows on the device of the network."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from gmd_ray.config import StudentConfig
from gmd_ray.students import load_student, new_checkpoint

SWINIR = {
    "upscale": 2, "img_size": 16, "window_size": 8, "embed_dim": 12, "depths": [2], "num_heads": [2], "mlp_ratio": 2,
    "upsampler": "pixelshuffle", "img_range": 1.0, "resi_connection": "1conv",
}  # fmt: skip


def test_masks_are_spandrels_and_on_the_device_of_the_weights(tmp_path: Path) -> None:
    new_checkpoint("SwinIR", SWINIR, 0, tmp_path / "swinir.pth")
    network = load_student(StudentConfig(path=str(tmp_path / "swinir.pth"), device="cpu")).module.network
    plain, shifted = (part for part in network.modules() if hasattr(part, "calculate_mask"))
    assert not plain.calculate_mask((24, 16)).any()
    mask = shifted.calculate_mask((24, 16))
    assert mask.any()
    for size in ((24, 16), (8, 40), (8, 8)):
        for part in (plain, shifted):
            assert torch.equal(part.calculate_mask(size), type(part).calculate_mask(part, size))
    # The meta device stands for a GPU. A copy, as an export makes, computes its masks on its own device.
    moved = copy.deepcopy(network).to("meta")
    masks = [part.calculate_mask((24, 16)) for part in moved.modules() if hasattr(part, "calculate_mask")]
    assert [m.device.type for m in masks] == ["meta", "meta"]
    assert shifted.calculate_mask((24, 16)).device.type == "cpu"
    assert moved(torch.empty(1, 3, 24, 16, device="meta")).shape == (1, 3, 48, 32)

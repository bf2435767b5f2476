"""Small instances of spandrel's own classes, saved as the tools that made such checkpoints save them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from spandrel.architectures.DnCNN import DnCNN
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.NAFNet import NAFNet
from spandrel.architectures.RCAN import RCAN
from spandrel.architectures.SPAN import SPAN
from spandrel.architectures.SwinIR import SwinIR
from spandrel.architectures.Uformer import Uformer
from torch import Tensor, nn

from gmd_ray.config import StudentConfig
from gmd_ray.students import load_student


def swinir(**changes: Any) -> SwinIR:
    settings = {
        "img_size": 16,
        "embed_dim": 12,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "window_size": 8,
        "mlp_ratio": 2.0,
        "upscale": 1,
        "upsampler": "",
        "resi_connection": "1conv",
    }
    return SwinIR(**(settings | changes))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "swinir_x1": swinir,
    "swinir_x2": lambda: swinir(upscale=2, upsampler="pixelshuffle"),
    "swinir_x4_nearest": lambda: swinir(upscale=4, upsampler="nearest+conv"),
    "swinir_unshuffle": lambda: swinir(upscale=8, upsampler="nearest+conv", start_unshuffle=8),
    "nafnet": lambda: NAFNet(width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1]),
    "dncnn": lambda: DnCNN(in_nc=3, out_nc=3, nc=8, nb=9, act_mode="R"),
    "dncnn_gray_bn": lambda: DnCNN(in_nc=1, out_nc=1, nc=8, nb=6, act_mode="BR"),
    "fdncnn": lambda: DnCNN(in_nc=4, out_nc=3, nc=8, nb=9, act_mode="R", mode="FDnCNN"),
    "esrgan_old": lambda: ESRGAN(num_filters=16, num_blocks=2, scale=2),
    "esrgan_basicsr": lambda: ESRGAN(num_filters=16, num_blocks=2, scale=4),
    "esrgan_bsrgan": lambda: ESRGAN(num_filters=16, num_blocks=2, scale=4),
    "realesrgan_x2": lambda: ESRGAN(in_nc=12, num_filters=16, num_blocks=2, scale=4, shuffle_factor=2),
    "rcan": lambda: RCAN(scale=2, n_resgroups=1, n_resblocks=2, n_feats=16),
    "span": lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2, norm=False),
    "uformer": lambda: Uformer(
        img_size=128,
        embed_dim=8,
        win_size=8,
        depths=[1] * 9,
        num_heads=[1] * 9,
        token_projection="linear",
        token_mlp="leff",
    ),
}


def file_keys(name: str, network: nn.Module) -> dict[str, Tensor]:
    """Return the state dict under the keys of the official code, in its order."""
    state = network.state_dict()
    if name == "swinir_unshuffle":
        return {re.sub(r"^conv_first\.", "conv_first.1.", key): value for key, value in state.items()}
    if name in ("esrgan_basicsr", "realesrgan_x2"):
        trunk, body, up, hr = r"body.\1.rdb\2.conv\3", "conv_body", "conv_up", "conv_hr"
    elif name == "esrgan_bsrgan":
        trunk, body, up, hr = r"RRDB_trunk.\1.RDB\2.conv\3", "trunk_conv", "upconv", "HRconv"
    else:
        return dict(state)
    names = {"0": "conv_first", "1.sub.2": body, "3": f"{up}1", "6": f"{up}2", "8": hr, "10": "conv_last"}
    renamed = {}
    for key, value in state.items():
        block = re.sub(r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\b", trunk, key)
        stem, _, kind = key.rpartition(".")
        renamed[block if block != key else f"{names[stem.removeprefix('model.')]}.{kind}"] = value
    return renamed


def save_network(
    path: Path, name: str, wrap: Callable[[dict[str, Tensor]], Any] = lambda weights: weights
) -> dict[str, Tensor]:
    """Save a random instance; returns its weights by file key."""
    torch.manual_seed(1)
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
        elif isinstance(module, nn.Conv2d) and "dncnn" in name:
            nn.init.kaiming_normal_(module.weight)  # torch's default lets the signal die out on the way
    weights = {key: value.clone() for key, value in file_keys(name, network).items()}
    torch.save(wrap(weights), path)
    return weights


def student_of(path: Path, **settings: Any) -> Any:
    """Load the student of a checkpoint on the CPU."""
    return load_student(StudentConfig(path=str(path), device="cpu", **settings))

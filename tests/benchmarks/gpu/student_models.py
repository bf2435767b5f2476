"""Students of the published sizes with random weights, loaded by the project's own code, and narrow ones of a kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from safetensors.torch import save_file

from gmd_ray.config import StudentConfig
from gmd_ray.students import Student, load_student, new_checkpoint
from gmd_ray.students.latent.presets import PRESETS, LatentShape
from gmd_ray.students.latent.student import write_index
from tests.benchmarks.teacher import TINY_VAE, VAE

SWINIR: dict[str, Any] = {
    "upscale": 2, "img_size": 64, "window_size": 8, "embed_dim": 180, "depths": [6] * 6, "num_heads": [6] * 6,
    "mlp_ratio": 2, "upsampler": "pixelshuffle", "img_range": 1.0, "resi_connection": "1conv",
}  # fmt: skip
"""SwinIR x2 of 11.75 million parameters."""
SAMPLING_STEPS = 4
"""Euler steps of a restored image, the default of `gmd-ray new-student`."""


@dataclass(frozen=True)
class SwinIRFile:
    """A SwinIR checkpoint written by `new_checkpoint`."""

    scale: int
    groups: int
    """Groups of transformer layers."""
    tiny: bool
    name: str = "SwinIR"

    def cut(self) -> SwinIRFile:
        """The same width with a single group, which compiles within seconds."""
        return replace(self, groups=1, name="SwinIR, 1 group")

    def write(self, folder: Path) -> Path:
        depth, heads = (2, 2) if self.tiny else (6, 6)
        arguments = {
            **SWINIR, "upscale": self.scale, "upsampler": "" if self.scale == 1 else "pixelshuffle",
            "depths": [depth] * self.groups, "num_heads": [heads] * self.groups,
        }  # fmt: skip
        if self.tiny:
            arguments["embed_dim"] = 12
        path = folder / f"swinir-{self.groups}.pth"
        new_checkpoint("SwinIR", arguments, 0, path)
        return path

    def load(self, path: Path, device: torch.device) -> Student:
        return load_student(StudentConfig(path=str(path), device=str(device)))

    def reading(self, device: torch.device) -> Any:
        """Nothing is replaced: the checkpoint is on disk."""
        return nullcontext()


@dataclass(frozen=True)
class LatentDirectory:
    """A latent diffusion directory without weights: random ones appear on the device where they would be read."""

    shape: LatentShape
    tiny: bool
    name: str = "ldm-1.3b"
    scale: int = 1

    def cut(self) -> LatentDirectory:
        """The same width with three layers, which compile within seconds."""
        return replace(self, shape=replace(self.shape, num_layers=min(3, self.shape.num_layers)), name="ldm, 3 layers")

    def write(self, folder: Path) -> Path:
        path = folder / f"ldm-{self.shape.num_layers}"
        (path / "transformer").mkdir(parents=True)
        with torch.device("meta"):
            config = dict(self.shape.build().config)
        text = json.dumps({"_class_name": "SD3Transformer2DModel", **config}, default=list)
        (path / "transformer" / "config.json").write_text(text)
        # The first weight tells the precision of the stored transformer, which its export keeps.
        save_file({"stub": torch.zeros(1)}, path / "transformer" / "diffusion_pytorch_model.safetensors")
        self._codec().save_pretrained(path / "vae")
        write_index(path, self.scale, SAMPLING_STEPS)
        return path

    def load(self, path: Path, device: torch.device) -> Student:
        with self.reading(device):
            return load_student(StudentConfig(path=str(path), device=str(device)))

    @contextmanager
    def reading(self, device: torch.device) -> Iterator[None]:
        """Loading makes the same random transformer each time, and its 5 GB are not hashed."""

        def random(*_: Any, **__: Any) -> SD3Transformer2DModel:
            torch.manual_seed(0)
            with device:
                return self.shape.build().eval()

        with (
            mock.patch.object(SD3Transformer2DModel, "from_pretrained", random),
            mock.patch("gmd_ray.students.latent.student.fingerprint", return_value="random"),
        ):
            yield

    def _codec(self) -> AutoencoderKL:
        config = {**(TINY_VAE if self.tiny else VAE), "latent_channels": self.shape.latent_channels}
        torch.manual_seed(0)
        return AutoencoderKL(**config)


Recipe = SwinIRFile | LatentDirectory


def recipes(scale: int, tiny: bool) -> tuple[SwinIRFile, LatentDirectory]:
    """The two students.

    Args:
        scale: scale of the SwinIR: 2 has 11.75 million parameters, 1 has 11.50 million.
        tiny: narrow networks of the same classes.
    """
    name = "ldm-tiny" if tiny else "ldm-1.3b"
    return SwinIRFile(scale, 2 if tiny else 6, tiny), LatentDirectory(PRESETS[name], tiny, name)

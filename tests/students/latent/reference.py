"""The latent diffusion student by diffusers' own classes and torch alone, as the oracle of its tests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor

from gmd_ray.config import StudentConfig
from gmd_ray.students import Student, load_student


def load(path: Path, **settings: Any) -> Student:
    """Load the student under test on the CPU."""
    return load_student(StudentConfig(path=str(path), device="cpu", **settings))


def parts(path: Path) -> tuple[SD3Transformer2DModel, AutoencoderKL]:
    """Load the transformer and the autoencoder of a student with diffusers alone."""
    vae = AutoencoderKL.from_pretrained(path / "vae")
    return SD3Transformer2DModel.from_pretrained(path / "transformer").eval(), vae.eval()


def velocity(transformer: SD3Transformer2DModel, noisy: Tensor, lq: Tensor, sigma: Tensor) -> Tensor:
    """Call the transformer as diffusers does, with zeros for the text."""
    return transformer(
        hidden_states=torch.cat([noisy, lq], dim=1),
        encoder_hidden_states=torch.zeros(len(noisy), 1, 64),
        pooled_projections=torch.zeros(len(noisy), 64),
        timestep=1000 * sigma,
    ).sample


def drawn(key: str, shape: tuple[int, ...]) -> Tensor:
    """Draw the noise of an id."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little", signed=True)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

"""Loading the transformer of a FLUX teacher: whole, or one rank's share of it."""

from __future__ import annotations

from pathlib import Path

import torch

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ModelError
from gmd_ray.teachers.flux.families.family import FLUX2, Family
from gmd_ray.teachers.flux.families.flux1 import InjectingFlux
from gmd_ray.teachers.flux.families.flux2 import InjectingFlux2
from gmd_ray.teachers.flux.families.model import InjectingModel
from gmd_ray.text import one_line


def load_transformer(
    path: Path, family: Family, dtype: torch.dtype, device: torch.device, cfg: TeacherConfig
) -> InjectingModel:
    """Load the whole model, or this rank's share of it where several ranks make a replica.

    Args:
        path: `transformer/` of a diffusers directory.

    Raises:
        ModelError: the weights are missing, damaged or of other shapes.
        ConfigError: the number of ranks does not divide the number of attention heads.
    """
    plain: type[InjectingModel] = InjectingFlux2 if family is FLUX2 else InjectingFlux
    if cfg.gpus_per_replica == 1:
        model = _from_pretrained(plain, path, dtype)
        model.use_injecting_attention()
    elif cfg.sharding == "tensor":
        from gmd_ray.teachers.flux.tensor_parallel import load_shard

        model = load_shard(plain, path, dtype, device)
    else:
        from gmd_ray.teachers.flux.ulysses import UlyssesFlux, UlyssesFlux2, share_tokens

        model = _from_pretrained(UlyssesFlux2 if family is FLUX2 else UlyssesFlux, path, dtype)
        share_tokens(model)
    return model.requires_grad_(False).eval()


def _from_pretrained(kind: type[InjectingModel], path: Path, dtype: torch.dtype) -> InjectingModel:
    try:
        return kind.from_pretrained(path, torch_dtype=dtype, use_safetensors=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: cannot load the weights ({one_line(error)})") from error

"""Preparing a loaded FLUX transformer to run: place and precision of its weights, attention kernels, compilation."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError, nearest
from gmd_ray.teachers.acceleration.compilation import compile_blocks
from gmd_ray.teachers.acceleration.float8 import quantize
from gmd_ray.teachers.acceleration.flux1_blocks import fuse_blocks
from gmd_ray.teachers.acceleration.fused import trustworthy
from gmd_ray.teachers.acceleration.modulated_norm import trustworthy_norm
from gmd_ray.teachers.flux.families.model import InjectingModel
from gmd_ray.teachers.flux.modulation import ModulationTables
from gmd_ray.text import one_line


def accelerate(
    model: InjectingModel, cfg: TeacherConfig, device: torch.device, modulation_home: torch.device | None
) -> ModulationTables | None:
    """Bring the model to its device as the settings say.

    Args:
        model: with its attention installed, on the CPU or already on `device`.
        modulation_home: where the weights of the modulation layers stay; None leaves them in the model.

    Returns:
        the modulation layers, if they are detached from the model.

    Raises:
        ConfigError: an attention backend is not installed.
    """
    if cfg.attention_backend is not None:
        use_attention_backend(model, cfg.attention_backend)
    # Detached first, so that rounding and offloading leave these layers alone: they run once per time grid.
    tables = None if modulation_home is None else ModulationTables(model, device, modulation_home)
    if cfg.precision == "fp8":
        place = device if cfg.offload == "none" else torch.device("cpu")
        quantize(model, ("transformer_blocks", "single_transformer_blocks"), place)
    if device.type == "cuda":
        fuse(model, device, compiled=cfg.compile is True)
    if cfg.offload == "group":
        offload(model, device)
    else:
        model.to(device)
    if cfg.compile is True:
        compile_blocks(model)
    return tables


def fuse(model: InjectingModel, device: torch.device, *, compiled: bool) -> None:
    """Use kernels that do several steps at once, where a process has the whole model and they agree with plain ones.

    In compiled blocks PyTorch fuses the rest: norms with modulation, residuals with gates. Uncompiled blocks gain most,
    since each kernel saves launches too.
    """
    if model.ranks > 1:
        return
    if isinstance(model, FluxTransformer2DModel):  # each check of a kernel costs seconds, and FLUX.2 has other norms
        fuse_blocks(model, kernel=trustworthy_norm(device, model.dtype, compiled=compiled))
    model.attention.fused = trustworthy(device, model.dtype, compiled=compiled)


def use_attention_backend(model: InjectingModel, name: str) -> None:
    """Select one of diffusers' attention backends, except SageAttention's, which round to 8 bits.

    Raises:
        ConfigError: the name is unknown, or the backend is not installed.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName

    known = [backend.value for backend in AttentionBackendName if "sage" not in backend.value]
    if name not in known:
        raise ConfigError(f"teacher.attention_backend={name}: {nearest(name, known)}")
    try:
        model.set_attention_backend(name)
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(f"teacher.attention_backend={name}: not available here ({one_line(error)})") from error


def offload(model: InjectingModel, device: torch.device) -> None:
    """Keep the weights on the host and copy each block to the device for its turn, on CUDA while another computes."""
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        model,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )

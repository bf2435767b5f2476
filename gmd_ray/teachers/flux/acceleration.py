"""A loaded FLUX transformer, made ready to run: its weights' place and precision, attention kernels, compilation."""

from __future__ import annotations

import torch
from torch import nn

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError, nearest
from gmd_ray.teachers.flux.attention import InjectingFlux
from gmd_ray.teachers.flux.modulation import ModulationTables


def accelerate(
    model: InjectingFlux, cfg: TeacherConfig, device: torch.device, modulation_home: torch.device
) -> ModulationTables:
    """Bring the model to its device as the settings say; what it returns answers for the layers taken out.

    Args:
        model: with its attention installed, on the CPU or already on `device`.
        modulation_home: where the modulation layers' weights wait.

    Raises:
        ConfigError: for a backend or an extra that is not there.
    """
    if cfg.attention_backend is not None:
        use_attention_backend(model, cfg.attention_backend)
    # First, so that neither quantization nor offloading meets the layers that seldom run.
    tables = ModulationTables(model, device, modulation_home)
    if cfg.quantization == "fp8":
        quantize(model, device if cfg.offload == "none" else torch.device("cpu"))
    if cfg.offload == "group":
        offload(model, device)
    else:
        model.to(device)
    if cfg.compile:
        model.compile_repeated_blocks(fullgraph=True)
    return tables


def use_attention_backend(model: InjectingFlux, name: str) -> None:
    """Attention by one of diffusers' backends; those of SageAttention, which round to 8 bits, are not offered.

    Raises:
        ConfigError: for an unknown name, or a backend that is not installed.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName

    known = [backend.value for backend in AttentionBackendName if "sage" not in backend.value]
    if name not in known:
        raise ConfigError(f"teacher.attention_backend={name}: {nearest(name, known)}")
    try:
        model.set_attention_backend(name)
    except (ImportError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"teacher.attention_backend={name}: not to be had here ({reason})") from error


def quantize(model: InjectingFlux, device: torch.device) -> None:
    """The blocks' Linears to float8_e4m3fn, a scale for each output channel; layer by layer on `device`.

    Raises:
        ConfigError: where torchao is not installed.
    """
    try:
        from torchao.quantization import Float8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise ConfigError("teacher.quantization=fp8 needs torchao: pip install 'gmd_ray[quantization]'") from error

    def in_block(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and name.startswith(("transformer_blocks.", "single_transformer_blocks."))

    quantize_(model, Float8WeightOnlyConfig(), filter_fn=in_block, device=device)


def offload(model: InjectingFlux, device: torch.device) -> None:
    """Weights in host memory; each block comes to the device for its turn, on CUDA while the one before it computes."""
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        model,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )

"""A FLUX transformer shared by the ranks of a process group: tensor parallelism (teacher.md 5).

Each rank holds 1/k of the rows of the projections into a block (queries, keys, values, MLP in) and 1/k of the columns
of those out of it, whose partial results are summed over the ranks; so it computes 1/k of the heads and of the MLP, and
keeps 1/k of the keys and values. Embedders, norms and modulation stand on every rank. diffusers' own tensor parallelism
splits the same weights the same way, but refuses CPUs; its list of what is split is used here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers.hooks.tensor_parallel import TPShardSpec, resolve_tp_shard_specs
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional as F

from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.teachers.flux.attention import InjectingAttention, InjectingFlux

WHOLE = TPShardSpec(None, None)


class RowParallelLinear(nn.Linear):
    """A linear layer of which each rank holds a part of the input columns; the bias is whole."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 -- nn.Linear's name
        """(..., columns of this rank) -> (..., out_features), the same on every rank."""
        out = F.linear(input, self.weight)
        if out.numel():  # text that is left out
            dist.all_reduce(out)
        return out if self.bias is None else out + self.bias


class TensorParallelAttention(InjectingAttention):
    """Keeps 1/k of the channels of an attention's input, where the cache holds inputs."""

    def share(self, x: torch.Tensor) -> torch.Tensor:
        return x.chunk(dist.get_world_size(), dim=-1)[dist.get_rank()]

    def unshare(self, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim=-1)


def load_shard(path: Path, dtype: torch.dtype, device: torch.device) -> InjectingFlux:
    """This rank's share of a model directory; of split weights nothing else is read.

    Args:
        path: `transformer/` of a diffusers directory.

    Raises:
        ConfigError: a number of ranks that does not divide the model.
        ModelError: weights that are missing, damaged or of other shapes.
    """
    ranks, rank = dist.get_world_size(), dist.get_rank()
    with torch.device("meta"):
        model = InjectingFlux.from_config(InjectingFlux.load_config(path))
    heads = model.config.num_attention_heads
    if heads % ranks:
        raise ConfigError(f"teacher.gpus_per_replica={ranks}: must divide the model's {heads} attention heads")
    specs = resolve_tp_shard_specs(model, model._tp_plan, ranks)
    _shrink(model, specs, ranks)
    try:
        weights = {name: tensor.to(device, dtype) for name, tensor in _read(path, specs, ranks, rank)}
        model.load_state_dict(weights, strict=True, assign=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot load the weights ({str(error).splitlines()[0]})") from error
    model.ranks = ranks
    model.use_injecting_attention(TensorParallelAttention())
    return model


def _shrink(model: InjectingFlux, specs: dict[str, TPShardSpec], ranks: int) -> None:
    """Replace the layers that are split by empty ones of this rank's size."""
    for name, spec in specs.items():
        layer_name, _, kind = name.rpartition(".")
        if kind != "weight":
            continue
        layer, size = model.get_submodule(layer_name), list(model.get_parameter(name).shape)
        size[spec.dim] //= ranks
        new = RowParallelLinear if spec.dim == 1 else nn.Linear
        model.set_submodule(layer_name, new(size[1], size[0], bias=layer.bias is not None, device="meta"))


def _read(path: Path, specs: dict[str, TPShardSpec], ranks: int, rank: int) -> Iterator[tuple[str, torch.Tensor]]:
    """This rank's part of every tensor of the directory's weight files."""
    index = path / SAFE_WEIGHTS_INDEX_NAME
    files = (
        sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if index.is_file()
        else [SAFETENSORS_WEIGHTS_NAME]
    )
    for file in files:
        with safe_open(path / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 -- not a dict
                spec = specs.get(name, WHOLE)
                if spec.dim is None:
                    yield name, tensors.get_tensor(name)
                else:
                    yield name, _part(tensors.get_slice(name), spec, ranks, rank)


def _part(stored: Any, spec: TPShardSpec, ranks: int, rank: int) -> torch.Tensor:
    """This rank's rows or columns of a stored tensor, of which nothing else is read.

    A fused layer holds several blocks of them, each of which is split by itself.
    """
    assert spec.dim is not None
    assert spec.block_sizes is not None
    parts, start = [], 0
    for size in spec.block_sizes:
        mine = slice(start + size * rank // ranks, start + size * (rank + 1) // ranks)
        parts.append(stored[mine] if spec.dim == 0 else stored[:, mine])
        start += size
    return torch.cat(parts, dim=spec.dim)

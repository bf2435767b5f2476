"""A FLUX transformer shared by the k ranks of a process group: tensor parallelism.

Each rank holds 1/k of the rows of the projections into a block (queries, keys, values, MLP in) and 1/k of the columns
of the projections out of it, whose partial results are summed over the ranks. So it computes 1/k of the heads and of
the MLP, and keeps 1/k of the keys and values. Embedders, norms and modulation are whole on every rank. diffusers' own
tensor parallelism splits the same weights in the same way but refuses CPUs; this file uses its list of split weights.
See docs/decisions.md, "Several GPUs".
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
from gmd_ray.teachers.flux.attention import InjectingAttention
from gmd_ray.teachers.flux.families.model import InjectingModel
from gmd_ray.text import one_line

WHOLE = TPShardSpec(None, None)
"""For a weight that is not split."""


class RowParallelLinear(nn.Linear):
    """A linear layer with part of the weight's columns on each rank, whose results are summed; the bias is whole."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 -- nn.Linear's name
        """(..., columns of this rank) -> (..., out_features), the same on every rank."""
        # Each rank multiplies its columns alone; the sum over the ranks is the whole product. The bias is added once.
        out = F.linear(input, self.weight)
        if out.numel():  # text that is left out has no rows, on any rank
            dist.all_reduce(out)
        return out if self.bias is None else out + self.bias


class TensorParallelAttention(InjectingAttention):
    """Attention that keeps 1/k of the channels of its input, for a cache of inputs."""

    def share(self, x: torch.Tensor) -> torch.Tensor:
        return x.chunk(dist.get_world_size(), dim=-1)[dist.get_rank()]

    def unshare(self, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim=-1)


def load_shard(kind: type[InjectingModel], path: Path, dtype: torch.dtype, device: torch.device) -> InjectingModel:
    """Load this rank's share of a model directory; of split weights no other part is read.

    Args:
        kind: the family's class.
        path: `transformer/` of a diffusers directory.

    Raises:
        ConfigError: the number of ranks does not divide the number of attention heads.
        ModelError: weights are missing, damaged or of other shapes.
    """
    ranks, rank = dist.get_world_size(), dist.get_rank()
    with torch.device("meta"):
        model = kind.from_config(kind.load_config(path))
    heads = model.config.num_attention_heads
    if heads % ranks:
        raise ConfigError(f"teacher.gpus_per_replica={ranks}: must divide the model's {heads} attention heads")
    specs = resolve_tp_shard_specs(model, model._tp_plan, ranks)
    _shrink(model, specs, ranks)
    try:
        weights = {name: tensor.to(device, dtype) for name, tensor in _read(path, specs, ranks, rank)}
        model.load_state_dict(weights, strict=True, assign=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot load the weights ({one_line(error)})") from error
    model.ranks = ranks
    model.use_injecting_attention(TensorParallelAttention())
    return model


def _shrink(model: InjectingModel, specs: dict[str, TPShardSpec], ranks: int) -> None:
    """Replace the split layers by uninitialised ones of this rank's size."""
    for name, spec in specs.items():
        layer_name, _, kind = name.rpartition(".")
        if kind != "weight":
            continue
        layer, size = model.get_submodule(layer_name), list(model.get_parameter(name).shape)
        # A weight is (out, in). Split along `in` (dim 1), the partial results have to be summed.
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
    """This rank's rows or columns of a stored tensor; nothing else of it is read.

    A fused layer stacks the rows (or columns) of several projections, such as attention and MLP of a single block. Each
    of these blocks of rows is split by itself, so that a rank has its part of every one.
    """
    assert spec.dim is not None
    assert spec.block_sizes is not None
    parts, start = [], 0
    for size in spec.block_sizes:
        mine = slice(start + size * rank // ranks, start + size * (rank + 1) // ranks)
        parts.append(stored[mine] if spec.dim == 0 else stored[:, mine])
        start += size
    return torch.cat(parts, dim=spec.dim)

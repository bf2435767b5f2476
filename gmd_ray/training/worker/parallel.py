"""One model on many workers: DDP, or FSDP2 where it does not fit; the same gradients and the same whole state dicts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from gmd_ray.errors import GmdError


def wrap(module: nn.Module, strategy: str, device: torch.device) -> nn.Module:
    """Put a module on this worker's device and join it with the other workers'; what the training step calls.

    Args:
        module: with the same weights on every worker. Under FSDP its parameters are sharded in place, and go to the
            device block by block: all of them together need not fit there.
        strategy: ddp or fsdp.
        device: of this worker.
    """
    if strategy == "fsdp" and world_size() > 1:
        mesh = init_device_mesh(device.type, (world_size(),))
        for block in blocks(module):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return module
    import ray.train.torch  # here alone: the rest is plain torch

    # SPAN, FFTformer and others hold parameters that a training forward never reaches; plain DDP stops at those.
    unused = {"find_unused_parameters": True}
    joined = ray.train.torch.prepare_model(module, parallel_strategy_kwargs=unused)
    assert isinstance(joined, nn.Module)
    return joined


def blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks that are gathered one at a time: members of the outermost module lists, which hold a network's depth.

    A list may be called by index or sliced, so it is its members that are sharded; those that share parameters with
    others (weight tying) and those without any stay with the root.
    """
    shared = _shared_parameters(module)
    found: list[nn.Module] = []

    def visit(parent: nn.Module) -> None:
        for child in parent.children():
            if not isinstance(parent, nn.ModuleList) or isinstance(child, nn.ModuleList):
                visit(child)
                continue
            own = {id(p) for p in child.parameters()}
            if own and not own & shared:
                found.append(child)

    visit(module)
    return found


def _shared_parameters(module: nn.Module) -> set[int]:
    seen: set[int] = set()
    shared: set[int] = set()
    for _, parameter in module.named_parameters(remove_duplicate=False):
        (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


@contextlib.contextmanager
def gathering(model: nn.Module, last: bool) -> Iterator[None]:
    """Around one part of a step: gradients are summed over the workers in the last part alone."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        yield
    elif isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Of the global gradient, as a plain tensor; every worker has to call it."""
    return whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def whole(value: Tensor) -> Tensor:
    """A sharded tensor gathered from all workers; any other as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gathered(state: Any, keep: bool) -> Any:
    """A state dict, nested as an optimiser's, with whole tensors on the CPU: the same for any strategy and world size.

    Every worker has to call it, and gathers one tensor after the other: a model that is sharded since it does not fit
    a device is never whole on one. Without `keep` the tensors are let go of, and None stands in their place.
    """
    if isinstance(state, Tensor):
        value = whole(state.detach())
        return value.cpu() if keep else None
    if isinstance(state, dict):
        return {key: gathered(value, keep) for key, value in state.items()}
    return [gathered(value, keep) for value in state] if isinstance(state, list) else state


def sharded_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on all workers, cut as `like` is."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take up a state that `gathered` made, whatever it was trained on."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    cut = {
        index: {
            key: sharded_like(value, parameters[index]) if value.shape == parameters[index].shape else value
            for key, value in entries.items()
        }
        for index, entries in state["state"].items()
    }
    optimizer.load_state_dict({"state": cut, "param_groups": state["param_groups"]})


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def first_failure(failure: GmdError | None) -> GmdError | None:
    """The failure of the lowest rank that has one; every worker has to call it."""
    if world_size() == 1:
        return failure
    failures: list[GmdError | None] = [None] * world_size()
    dist.all_gather_object(failures, failure)
    return next((f for f in failures if f is not None), None)

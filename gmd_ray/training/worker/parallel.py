"""One model on many workers, with DDP or FSDP2; gradients and gathered state dicts are the same with both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from gmd_ray.errors import GmdError

T = TypeVar("T")


def wrap(module: nn.Module, strategy: str, device: torch.device) -> nn.Module:
    """Put a module on this worker's device and join it with those of the other workers.

    Args:
        module: the module, with the same weights on every worker. Under FSDP its parameters are sharded in place and
            move to the device block by block, so that a model too large for one device works.
        strategy: ddp or fsdp.
        device: the device of this worker.

    Returns:
        The module that the training step calls.
    """
    if strategy == "fsdp" and world_size() > 1:
        mesh = init_device_mesh(device.type, (world_size(),))
        for block in blocks(module):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return module
    import ray.train.torch  # imported here alone: the rest of this module is plain torch

    # SPAN, FFTformer and others have parameters without a gradient in training, at which DDP stops by default.
    unused = {"find_unused_parameters": True}
    joined = ray.train.torch.prepare_model(module, parallel_strategy_kwargs=unused)
    assert isinstance(joined, nn.Module)
    return joined


def blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks that FSDP gathers one at a time: the members of a network's outermost module lists.

    The members are sharded, not the lists, since a network may index or slice a list. Members that share parameters
    with others (weight tying) and members without parameters stay with the root.
    """
    shared = _shared_parameters(module)
    members: list[nn.Module] = []

    def visit(parent: nn.Module) -> None:
        for child in parent.children():
            if not isinstance(parent, nn.ModuleList) or isinstance(child, nn.ModuleList):
                visit(child)
                continue
            own = {id(p) for p in child.parameters()}
            if own and not own & shared:
                members.append(child)

    visit(module)
    return members


def _shared_parameters(module: nn.Module) -> set[int]:
    seen: set[int] = set()
    shared: set[int] = set()
    for _, parameter in module.named_parameters(remove_duplicate=False):
        (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


@contextlib.contextmanager
def gathering(model: nn.Module, last: bool) -> Iterator[None]:
    """Context for one part of a step: gradients are summed over the workers in the last part only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        yield
    elif isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The norm of the global gradient, a plain scalar tensor. Every worker must call this."""
    return whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def whole(value: Tensor) -> Tensor:
    """Gather a sharded tensor from all workers; return any other tensor as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gathered(state: Any, keep: bool) -> Any:
    """Gather a state dict, nested like an optimiser's, into full tensors on the CPU, whatever strategy trained it.

    Every worker must call this. Tensors are gathered one after the other, so that a model that does not fit a device
    is never complete on one. With `keep=False` the result holds None in place of each tensor.
    """
    if isinstance(state, Tensor):
        value = whole(state.detach())
        return value.cpu() if keep else None
    if isinstance(state, dict):
        return {key: gathered(value, keep) for key, value in state.items()}
    return [gathered(value, keep) for value in state] if isinstance(state, list) else state


def sharded_like(value: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor, which is the same on all workers, in the way `like` is sharded."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state that `gathered` made, under any strategy and world size."""
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


def from_rank_zero(value: T) -> T:
    """Send a small value from rank 0 to all workers, and return it. Every worker must call this."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def first_failure(failure: GmdError | None) -> GmdError | None:
    """The failure of the lowest rank that has one. Every worker must call this."""
    if world_size() == 1:
        return failure
    failures: list[GmdError | None] = [None] * world_size()
    dist.all_gather_object(failures, failure)
    return next((f for f in failures if f is not None), None)

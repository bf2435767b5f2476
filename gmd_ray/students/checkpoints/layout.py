"""The layout of a checkpoint file, which allows fine-tuned weights to be saved in exactly the same form.

A file may be a bare state dict, wrap it (`params`, `params_ema`, `state_dict`, ...), prefix its keys (`module.`,
`netG.`), use other key names than the network class, store half precision, hold an average beside the raw weights, or
contain entries that are not weights. `Checkpoint` is a file with its weights located. `Layout` is the same file without
its weights; it writes others in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gmd_ray.errors import ModelError
from gmd_ray.students.checkpoints.file import read_checkpoint_file
from gmd_ray.students.checkpoints.places import WeightsPlace, averages_left, find_weights, twins
from gmd_ray.students.common import save_pickle


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file as read, with the place of the weights in it."""

    suffix: str
    """Extension of the file in lower case, with its dot."""
    tree: dict[str, Any]
    """The whole content of the file."""
    metadata: dict[str, str] | None
    """The metadata of a safetensors file; None for others."""
    place: WeightsPlace
    """The place of the weights in `tree`."""

    @property
    def weights(self) -> dict[str, Any]:
        """The weights by key without the prefix. It is a new dict each time, as spandrel's loaders modify theirs."""
        return self.place.weights(self.tree)

    def choice(self) -> str | None:
        """Describe which weights are used if the file holds more than one set; None if it holds one."""
        others = twins(self.tree, self.place)
        left = averages_left(self.tree, [self.place, *others])
        if not others and not left:
            return None
        kind = "the averaged weights" if self.place.averaged else "the weights"
        text = f"takes {kind} {self.place.name}"
        if others:
            text += f"; saving replaces {', '.join(other.name for other in others)} too"
        if left:
            text += f"; {', '.join(left)} has an unknown form, and stays as it is"
        return text


def read_checkpoint(path: Path, known: Callable[[Mapping[str, Any]], bool]) -> Checkpoint:
    """Read a checkpoint without running any code that it may contain.

    Args:
        path: the file.
        known: returns True for the keys of a supported network, which distinguishes weights from other entries.

    Raises:
        ModelError: the file is missing, unreadable, of an unknown kind, holds pickled objects, has no weights, or has
            weights that are not finite.
    """
    tree, metadata = read_checkpoint_file(path)
    try:
        place = find_weights(tree, known)
    except ModelError as error:
        raise ModelError(f"student checkpoint {path}: {error}") from error
    weights = place.weights(tree)
    if not any(isinstance(value, Tensor) for value in weights.values()):
        found = ", ".join(map(str, [*weights][:5])) or "nothing"
        raise ModelError(f"student checkpoint {path}: no weights in it, only {found}")
    broken = next((key for key, value in weights.items() if not _finite(key, value)), None)
    if broken is not None:
        raise ModelError(
            f"student checkpoint {path}: {place.prefix}{broken} holds NaN or infinity: its training diverged, or the "
            f"file is damaged; take an earlier one"
        )
    return Checkpoint(path.suffix.lower(), tree, metadata, place)


def _finite(key: str, value: Any) -> bool:
    """Tell whether a weight is finite. Infinity is allowed in attention masks, which consist of it."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return True
    values = value.float()
    return not bool(values.isnan().any()) and ("mask" in key or not bool(values.isinf().any()))


def map_keys(
    weights: Mapping[str, Any], network: nn.Module, build: Callable[[dict[str, Any]], nn.Module]
) -> dict[str, str]:
    """Find the state key of the network to which the loader assigned each key of the file.

    A key of the same name and value was loaded unchanged. For the other keys, the network is built again from constant
    tensors, the n-th of which has the value n, and the numbers are read from its state. So no table of renames per
    architecture is needed.

    Args:
        weights: weights of the file by key without the prefix.
        network: the network that was built from them.
        build: function that builds a network from a dict of weights.

    Returns:
        key in the file -> key in the network. Keys that the loader dropped or made up are left out.

    Raises:
        ModelError: a parameter is not one whole tensor of the file, so trained values could not be written back.
    """
    state = network.state_dict()
    mapping = {key: key for key, value in state.items() if key in weights and _same(weights[key], value)}
    if len(mapping) < len(state):
        mapping |= _map_by_number(weights, [key for key in state if key not in mapping], build)
    mapped = set(mapping.values())
    lost = [name for name, _ in network.named_parameters() if name not in mapped]
    if lost:
        raise ModelError(f"{len(lost)} of its parameters, {lost[0]} first, cannot be traced to one tensor of the file")
    return mapping


def _same(stored: Any, loaded: Tensor) -> bool:
    return isinstance(stored, Tensor) and stored.shape == loaded.shape and torch.equal(stored.to(loaded), loaded)


def _map_by_number(
    weights: Mapping[str, Any], wanted: list[str], build: Callable[[dict[str, Any]], nn.Module]
) -> dict[str, str]:
    floats = [key for key, value in weights.items() if isinstance(value, Tensor) and value.is_floating_point()]
    # Expanded scalars: a tensor of the full shape, all of whose elements are the number of its key.
    numbered = dict(weights) | {
        key: torch.tensor(float(number)).expand(weights[key].shape) for number, key in enumerate(floats, start=1)
    }
    state = build(numbered).state_dict()
    mapping = {}
    for key in wanted:
        values = state[key].flatten()
        if not values.is_floating_point() or not len(values) or not torch.all(values == values[0]):
            continue
        number = values[0].item()
        if number in range(1, len(floats) + 1) and weights[floats[int(number) - 1]].shape == state[key].shape:
            mapping[floats[int(number) - 1]] = key
    return mapping


@dataclass(frozen=True)
class _Slot:
    """The place of a tensor in the file."""

    key: str
    """The tensor's key in the network's state."""
    dtype: torch.dtype
    """The tensor's type in the file."""


@dataclass(frozen=True)
class Layout:
    """A checkpoint file without its trained tensors."""

    suffix: str
    """Extension of the file in lower case, with its dot."""
    metadata: dict[str, str] | None
    """The metadata of a safetensors file; None for others."""
    skeleton: dict[str, Any]
    """The tree of the file, with a `_Slot` in place of each tensor of the network, in all its places."""
    place: WeightsPlace
    """The place of the weights that the network was built from."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, mapping: Mapping[str, str]) -> Layout:
        """Take the tensors out of a checkpoint.

        Args:
            checkpoint: the file.
            mapping: key in the file -> key in the network, from `map_keys`.
        """
        skeleton = checkpoint.tree
        for place in (checkpoint.place, *twins(checkpoint.tree, checkpoint.place)):
            skeleton = _emptied(skeleton, place.trail, {place.prefix + key: target for key, target in mapping.items()})
        return cls(checkpoint.suffix, checkpoint.metadata, skeleton, checkpoint.place)

    def round_(self, state: Mapping[str, Tensor]) -> None:
        """Round the tensors of a network's state in place to the precision of the file."""
        with torch.no_grad():
            for slot in self.place.weights(self.skeleton).values():
                if isinstance(slot, _Slot):
                    state[slot.key].copy_(state[slot.key].to(slot.dtype))

    def write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        """Write the file with the tensors of a network's state. The safetensors library sorts keys itself."""

        def filled(node: Any) -> Any:
            if isinstance(node, _Slot):
                return state[node.key].detach().to("cpu", node.dtype, copy=True).contiguous()
            return _like(node, {k: filled(v) for k, v in node.items()}) if isinstance(node, dict) else node

        tree = filled(self.skeleton)
        if self.suffix == ".safetensors":
            save_file(tree, path, metadata=self.metadata)
        else:
            save_pickle(tree, path)


def _emptied(node: dict[str, Any], trail: tuple[str, ...], keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the tree with slots for `keys` (key in the file -> key in the network) in the dict at the trail's end."""
    if trail:
        return _like(node, {k: _emptied(v, trail[1:], keys) if k == trail[0] else v for k, v in node.items()})
    return _like(
        node, {k: _Slot(keys[k], v.dtype) if k in keys and isinstance(v, Tensor) else v for k, v in node.items()}
    )


def _like(original: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """Copy `content` to the original's type of dict, with the `_metadata` that `nn.Module.state_dict` attaches."""
    new = type(original)(content)
    if hasattr(original, "_metadata"):
        new._metadata = original._metadata  # type: ignore[attr-defined]
    return new

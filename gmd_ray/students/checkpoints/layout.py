"""How a checkpoint file holds its weights, so that fine-tuned weights go back in the very same form.

A file may be a bare state dict, wrap it (`params`, `params_ema`, `state_dict`, ...), prefix its keys (`module.`,
`netG.`), name them otherwise than the network class does, store half precision, keep an average beside the raw weights,
or carry entries that are no weights. `Checkpoint` is a file that was read, with its weights found; `Layout` is the form
that is left when they are taken out, and writes others in their place.
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
from gmd_ray.students.checkpoints.places import Place, averages_left, find_weights, twins
from gmd_ray.students.common import save_pickle


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file as read, with the place of the weights in it."""

    suffix: str
    tree: dict[str, Any]
    """Everything in the file."""
    metadata: dict[str, str] | None
    """The header of a safetensors file."""
    place: Place
    """Where the weights are."""

    @property
    def weights(self) -> dict[str, Any]:
        """Weights by key without the prefix; a new dict each time, as spandrel's loaders change what they get."""
        return self.place.weights(self.tree)

    def choice(self) -> str | None:
        """What a user should know where the file holds more than one set of weights; None where there is no choice."""
        others = twins(self.tree, self.place)
        left = averages_left(self.tree, [self.place, *others])
        if not others and not left:
            return None
        kind = "the averaged weights" if self.place.averaged else "the weights"
        text = f"takes {kind} {self.place.name}"
        if others:
            text += f"; saving replaces {', '.join(other.name for other in others)} too"
        if left:
            text += f"; {', '.join(left)} is kept in a form that is not known here, and stays as it is"
        return text


def read_checkpoint(path: Path, known: Callable[[Mapping[str, Any]], bool]) -> Checkpoint:
    """Read a checkpoint without running any code that it may contain.

    Args:
        known: whether there is a network with such keys; it tells the weights from what else is in the file.

    Raises:
        ModelError: the file is missing, unreadable, of an unknown kind, holds pickled objects or no weights, or weights
            that are not finite.
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
    """Infinity is let pass in masks, which are made of it."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return True
    values = value.float()
    return not values.isnan().any() and ("mask" in key or not values.isinf().any())


def map_keys(
    weights: Mapping[str, Any], network: nn.Module, build: Callable[[dict[str, Any]], nn.Module]
) -> dict[str, str]:
    """Which state key of the network each key of the file went to.

    A key of the same name and value went there unchanged. For the others the network is built once more from weights
    that are constants numbered by their key, and the numbers are read off: so renames need no table per architecture.

    Args:
        weights: as read from the file, prefix taken off.
        network: what was built of them.
        build: makes a network of a dict of weights.

    Returns:
        File key -> network key. Keys that the loader dropped or made up are left out.

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
    """Of the network's state."""
    dtype: torch.dtype


@dataclass(frozen=True)
class Layout:
    """A checkpoint file without its trained tensors."""

    suffix: str
    metadata: dict[str, str] | None
    skeleton: dict[str, Any]
    """The file's tree with a `_Slot` for each tensor that the network holds, in each of its places; all else as it was.
    """
    place: Place

    @classmethod
    def of(cls, checkpoint: Checkpoint, mapping: Mapping[str, str]) -> Layout:
        """The layout of a file, given where its keys went."""
        skeleton = checkpoint.tree
        for place in (checkpoint.place, *twins(checkpoint.tree, checkpoint.place)):
            skeleton = _emptied(skeleton, place.trail, {place.prefix + key: target for key, target in mapping.items()})
        return cls(checkpoint.suffix, checkpoint.metadata, skeleton, checkpoint.place)

    def round_(self, state: Mapping[str, Tensor]) -> None:
        """Round tensors in place to the precision that the file stores them in."""
        with torch.no_grad():
            for slot in self.place.weights(self.skeleton).values():
                if isinstance(slot, _Slot):
                    state[slot.key].copy_(state[slot.key].to(slot.dtype))

    def write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        """Write the file with these tensors in it. A safetensors file orders its keys itself."""

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
    """The tree with slots for `keys` (key of the file -> of the network) in the dict that the trail leads to."""
    if trail:
        return _like(node, {k: _emptied(v, trail[1:], keys) if k == trail[0] else v for k, v in node.items()})
    return _like(
        node, {k: _Slot(keys[k], v.dtype) if k in keys and isinstance(v, Tensor) else v for k, v in node.items()}
    )


def _like(original: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """`content` in the original's kind of dict, with the version notes that `nn.Module.state_dict` attaches."""
    new = type(original)(content)
    if hasattr(original, "_metadata"):
        new._metadata = original._metadata  # type: ignore[attr-defined]
    return new

"""How a checkpoint file holds its weights, so that fine-tuned weights go back in the very same form.

A file may be a bare state dict, wrap it (`params`, `params_ema`, `state_dict`, ...), prefix its keys (`module.`,
`netG.`), name them otherwise than the network class does, store half precision, or carry entries that are no
weights. `Checkpoint` reads a file safely and finds the weights in it; `Layout` is the form that is left when they are
taken out, and writes others in their place (restoration.md 1.1).
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gmd_ray.errors import ModelError
from gmd_ray.students.common import save_pickle

SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
_WRAPPERS = ("model_state_dict", "state_dict", "params_ema", "params-ema", "params", "model", "net")
"""Where the weights are looked for, in this order: spandrel's, so an EMA goes before the raw weights."""
_TWINS = {"params", "params_ema", "params-ema"}
"""Wrappers that hold the same weights in two versions; both are replaced."""
_PREFIXES = ("module.", "netG.")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file as read, with the place of the weights in it."""

    suffix: str
    tree: dict[str, Any]
    """Everything in the file."""
    metadata: dict[str, str] | None
    """The header of a safetensors file."""
    trail: tuple[str, ...]
    """Keys that lead from `tree` to the weights."""
    prefix: str
    """What every key of the weights starts with in the file and not in the network."""

    @property
    def weights(self) -> dict[str, Any]:
        """Weights by key without the prefix; a new dict each time, as spandrel's loaders change what they get."""
        return {key[len(self.prefix) :]: value for key, value in _at(self.tree, self.trail).items()}


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint without running any code that it may contain.

    Raises:
        ModelError: the file is missing, unreadable, of an unknown kind, or holds pickled objects.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise ModelError(f"student checkpoint {path} does not exist: set student.path to a weight file")
    if suffix not in SUFFIXES:
        raise ModelError(f"student checkpoint {path}: unknown ending {suffix!r}, known: {', '.join(SUFFIXES)}")
    tree, metadata = _read_safetensors(path) if suffix == ".safetensors" else (_read_pickle(path), None)
    trail, prefix = _find_weights(tree)
    weights = _at(tree, trail)
    if not any(isinstance(value, Tensor) for value in weights.values()):
        found = ", ".join(map(str, [*weights][:5])) or "nothing"
        raise ModelError(f"student checkpoint {path}: no weights in it, only {found}")
    return Checkpoint(suffix, tree, metadata, trail, prefix)


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str] | None]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118, not a dict
    except SafetensorError as error:
        raise ModelError(f"student checkpoint {path}: not a safetensors file ({_line(error)})") from error


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise ModelError(f"student checkpoint {path}: damaged or no checkpoint ({_line(error)})") from error
        raise ModelError(
            f"student checkpoint {path}: holds pickled objects ({found[1]}), which could run code; if you trust it, "
            f"extract the weights: torch.save(torch.load(f, weights_only=False)['state_dict'], 'weights.pth')"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        if "TorchScript" in str(error):
            raise ModelError(
                f"student checkpoint {path}: a TorchScript program; save its weights instead: "
                f"torch.save(torch.jit.load(f).state_dict(), 'weights.pth')"
            ) from error
        raise ModelError(f"student checkpoint {path}: damaged or no checkpoint ({_line(error)})") from error
    if not isinstance(tree, dict):
        raise ModelError(f"student checkpoint {path}: holds a {type(tree).__name__}, not a state dict")
    return tree


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _at(tree: dict[str, Any], trail: tuple[str, ...]) -> dict[str, Any]:
    for key in trail:
        tree = tree[key]
    return tree


def _find_weights(tree: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """The trail and the prefix, by the rules of spandrel's `canonicalize_state_dict`."""
    trail: tuple[str, ...] = ()
    node = tree
    while True:
        wrapped = [key for key in _WRAPPERS if isinstance(node.get(key), dict)] or [*node][: len(node) == 1]
        if not wrapped or not isinstance(node[wrapped[0]], dict):
            break
        trail, node = (*trail, wrapped[0]), node[wrapped[0]]
    prefix = ""
    for part in _PREFIXES:
        if node and all(str(key).startswith(prefix + part) for key in node):
            prefix += part
    return trail, prefix


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
    """The file's tree with a `_Slot` for each tensor that the network holds; all else as it was."""
    trail: tuple[str, ...]

    @classmethod
    def of(cls, checkpoint: Checkpoint, mapping: Mapping[str, str]) -> Layout:
        """The layout of a file, given where its keys went."""
        keys = {checkpoint.prefix + key: target for key, target in mapping.items()}
        selected = _at(checkpoint.tree, checkpoint.trail)

        def emptied(node: dict[str, Any], trail: tuple[str, ...]) -> dict[str, Any]:
            if not trail:
                return _like(node, {k: _Slot(keys[k], v.dtype) if k in keys else v for k, v in node.items()})
            here = {trail[0]}
            if trail[0] in _TWINS and len(trail) == 1:
                here |= {k for k in _TWINS & node.keys() if isinstance(node[k], dict) and set(node[k]) == set(selected)}
            return _like(node, {k: emptied(v, trail[1:]) if k in here else v for k, v in node.items()})

        return cls(checkpoint.suffix, checkpoint.metadata, emptied(checkpoint.tree, checkpoint.trail), checkpoint.trail)

    def round_(self, state: Mapping[str, Tensor]) -> None:
        """Round tensors in place to the precision that the file stores them in."""
        with torch.no_grad():
            for slot in _at(self.skeleton, self.trail).values():
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


def _like(original: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """`content` in the original's kind of dict, with the version notes that `nn.Module.state_dict` attaches."""
    new = type(original)(content)
    if hasattr(original, "_metadata"):
        new._metadata = original._metadata  # type: ignore[attr-defined]
    return new

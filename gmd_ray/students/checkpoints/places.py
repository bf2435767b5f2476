"""Locating the weights of a network in the tree of a checkpoint, and their averaged or raw counterparts.

Training tools wrap a state dict (`params`, `state_dict`, `model`, ...) and prefix its keys (`module.` by data
parallelism, `_orig_mod.` by torch.compile, `model.` by Lightning), in any order and number. Many also save an
exponential moving average (EMA) of the weights, under a name or prefix of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gmd_ray.errors import ModelError

_WRAPPERS = (
    "model_state_dict",
    "state_dict",
    "params",
    "model",
    "net",
    "net_g",
    "netG",
    "generator",
    "network",
    "module",
)
"""Usual names of weights, in the order in which they are tried (the first five are spandrel's)."""
_PREFIXES = (
    *("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_forward_module."),  # PyTorch's own wrappers
    *("model.", "net.", "netG.", "net_g.", "network.", "generator.", "student.", "online_model."),  # training tools
)
"""Prefixes that tools add to the keys of a network. Prefixes that contain a word of `_AVERAGES` are recognised too."""
_AVERAGES = {"ema", "averaged", "avg", "swa"}
"""Words in the names of averaged weights."""
_OTHERS = ("optim", "sched", "scaler")
"""Beginnings of the names of entries that hold no weights of a network."""
_LOSSES = re.compile("loss|criterion|percep|vgg|lpips|metric|discrim|net_?d", re.IGNORECASE)
"""Matches the names of networks that only training needs."""
_DEPTH = 5
"""The greatest number of nested wrappers, and of stacked prefixes."""


@dataclass(frozen=True)
class WeightsPlace:
    """A set of weights in a tree of dicts."""

    trail: tuple[str, ...]
    """Keys that lead from the tree to the dict that holds the weights."""
    prefix: str
    """Prefix of the weights' keys in that dict, which the network's own keys lack."""

    @property
    def averaged(self) -> bool:
        """True if the name marks the weights as averaged over the training."""
        return any(_is_average(name) for name in (*self.trail, *self.prefix.split(".")))

    @property
    def name(self) -> str:
        """The name of the place in messages."""
        return ".".join((*self.trail, *([self.prefix + "*"] if self.prefix else []))) or "the whole file"

    def node(self, tree: dict[str, Any]) -> dict[str, Any]:
        """Return the dict that holds the weights, and perhaps other entries."""
        for key in self.trail:
            tree = tree[key]
        return tree

    def weights(self, tree: dict[str, Any]) -> dict[str, Any]:
        """Return the weights by key without the prefix, in a new dict, as spandrel's loaders modify theirs."""
        start = len(self.prefix)
        return {
            key[start:]: value
            for key, value in self.node(tree).items()
            if isinstance(key, str) and key.startswith(self.prefix)
        }


def find_weights(tree: dict[str, Any], known: Callable[[Mapping[str, Any]], bool]) -> WeightsPlace:
    """Locate the weights. Averaged weights are preferred to raw ones, as training tools use them for inference.

    An average that lacks some of the raw weights' entries (such as the statistics of normalisation) is not used.

    Args:
        tree: content of the checkpoint.
        known: returns True for the keys of a supported network.

    Raises:
        ModelError: the file holds several networks, and their names do not tell which one is meant.
    """
    named = [place for place in _places(tree) if known(place.weights(tree))]
    if named:
        return _preferred(tree, named)
    unnamed = [place for place in _places(tree, any_name=True) if known(place.weights(tree))]
    if len({_shapes(place.weights(tree)) for place in unnamed if not place.averaged}) > 1:
        names = ", ".join(place.name for place in unnamed)
        raise ModelError(f"holds several networks ({names}): save the one to use in a file of its own")
    if unnamed:
        return _preferred(tree, unnamed)
    return next((place for place in _places(tree) if _has_tensors(place.weights(tree))), WeightsPlace((), ""))


def _preferred(tree: dict[str, Any], places: list[WeightsPlace]) -> WeightsPlace:
    raw = [place for place in places if not place.averaged]
    whole = {_shapes(place.weights(tree)) for place in raw}
    averaged = [place for place in places if place.averaged and (not raw or _shapes(place.weights(tree)) in whole)]
    return [*averaged, *raw][0]


def twins(tree: dict[str, Any], place: WeightsPlace) -> list[WeightsPlace]:
    """Find the other places that hold the same network, raw or averaged, which must be replaced together with it.

    An average may hold only a part of the weights, for example without the statistics of normalisation.
    """
    shapes = _shapes(place.weights(tree))

    def same(other: WeightsPlace) -> bool:
        others = _shapes(other.weights(tree))
        return others == shapes if place.averaged else other.averaged and bool(others) and others <= shapes

    return [other for other in _places(tree, any_name=True) if other != place and same(other)]


def averages_left(tree: dict[str, Any], places: list[WeightsPlace]) -> list[str]:
    """Return the names of averages beside the weights that are in none of `places`, as their form is unknown."""
    left: dict[str, None] = {}
    for depth in range(len(places[0].trail) + 1):
        trail = places[0].trail[:depth]
        for key, value in WeightsPlace(trail, "").node(tree).items():
            name = str(key).partition(".")[0]
            used = any(
                place.trail[: depth + 1] == (*trail, key)
                or (place.trail == trail and str(key).startswith(place.prefix))
                for place in places
            )
            if not used and _is_average(name) and _holds_many(value):
                left[".".join((*trail, name))] = None
    return [*left]


def _holds_many(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() > 1
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(_holds_many(part) for part in parts)


def _places(tree: dict[str, Any], *, any_name: bool = False) -> Iterator[WeightsPlace]:
    """Yield every place that could hold weights: deeper dicts first, usual names first, shorter prefixes first.

    Args:
        tree: content of the checkpoint.
        any_name: look under all names, not only the usual ones, and under any prefix that all keys except those of
            losses share.
    """

    def walk(node: dict[str, Any], trail: tuple[str, ...]) -> Iterator[WeightsPlace]:
        inner = [key for key, value in node.items() if isinstance(key, str) and isinstance(value, dict)]
        every = any_name or len(node) == 1 or any(_is_average(key) for key in trail)
        for key in sorted((key for key in inner if every or _is_wrapper(key)), key=_rank):
            if len(trail) < _DEPTH and not key.startswith(_OTHERS):
                yield from walk(node[key], (*trail, key))
        if _has_tensors(node):
            keys = [key for key, value in node.items() if isinstance(key, str) and isinstance(value, Tensor)]
            yield from (WeightsPlace(trail, prefix) for prefix in _prefixes(keys, any_name))

    yield from walk(tree, ())


def _prefixes(keys: list[str], any_name: bool) -> Iterator[str]:
    """Yield the empty prefix and the possible prefixes of the keys, breadth first, so that shorter ones win."""
    queue = [""]
    for prefix in queue:
        yield prefix
        rest = [key[len(prefix) :] for key in keys if key.startswith(prefix)]
        heads = list(dict.fromkeys(head + "." for head, dot, _ in (key.partition(".") for key in rest) if dot))
        for head in heads:
            shared = any_name and all(key.startswith(head) or _LOSSES.search(key.split(".")[0]) for key in rest)
            if (head in _PREFIXES or _is_average(head) or shared) and prefix.count(".") < _DEPTH:
                queue.append(prefix + head)


def _is_wrapper(key: str) -> bool:
    return key in _WRAPPERS or _is_average(key)


def _rank(key: str) -> int:
    return _WRAPPERS.index(key) if key in _WRAPPERS else len(_WRAPPERS)


def _is_average(name: str) -> bool:
    words = re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", name)
    return any(word.lower() in _AVERAGES for word in words)


def _has_tensors(node: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in node.values())


def _shapes(weights: Mapping[str, Any]) -> frozenset[tuple[str, tuple[int, ...]]]:
    return frozenset((key, tuple(value.shape)) for key, value in weights.items() if isinstance(value, Tensor))

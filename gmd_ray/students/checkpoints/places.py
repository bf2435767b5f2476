"""Where in a checkpoint's tree the weights of the network are, and where their averaged or raw twins.

Training tools wrap a state dict (`params`, `state_dict`, `model`, ...) and prefix its keys (`module.` by data
parallelism, `_orig_mod.` by torch.compile, `model.` by Lightning), in any order and number, and many keep an
exponential moving average (EMA) of the weights beside them, under a name of its own or a prefix of its own.
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
"""Names under which weights are looked for first, in this order (the first five are spandrel's)."""
_PREFIXES = (
    *("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_forward_module."),  # PyTorch's own wrappers
    *("model.", "net.", "netG.", "net_g.", "network.", "generator.", "student.", "online_model."),  # training tools
)
"""What keys may start with that is no part of the network; with an EMA's word beside or before it, its average."""
_AVERAGES = {"ema", "averaged", "avg", "swa"}
"""Words in the names of averaged weights."""
_OTHERS = ("optim", "sched", "scaler")
"""What the names of entries begin with that hold no weights of a network."""
_LOSSES = re.compile("loss|criterion|percep|vgg|lpips|metric|discrim|net_?d", re.IGNORECASE)
"""What is in the names of networks that training needs and restoring does not."""
_DEPTH = 5


@dataclass(frozen=True)
class Place:
    """A set of weights in a tree of dicts."""

    trail: tuple[str, ...]
    """Keys that lead from the tree to the dict that holds the weights."""
    prefix: str
    """What their keys start with there and not in the network."""

    @property
    def averaged(self) -> bool:
        """Whether its name says that these are averaged over the training."""
        return any(_is_average(name) for name in (*self.trail, *self.prefix.split(".")))

    @property
    def name(self) -> str:
        """For a message."""
        return ".".join((*self.trail, *([self.prefix + "*"] if self.prefix else []))) or "the whole file"

    def node(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The dict that holds the weights, and perhaps others."""
        for key in self.trail:
            tree = tree[key]
        return tree

    def weights(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The entries by key without the prefix; a new dict each time, as spandrel's loaders change what they get."""
        start = len(self.prefix)
        return {
            key[start:]: value
            for key, value in self.node(tree).items()
            if isinstance(key, str) and key.startswith(self.prefix)
        }


def find_weights(tree: dict[str, Any], known: Callable[[Mapping[str, Any]], bool]) -> Place:
    """Where the weights are: averaged ones before raw ones, as they are what a training tool restores with.

    An average that lacks some of what the raw weights have (the statistics of normalisation, say) is passed over.

    Args:
        known: whether a network with such keys is known.

    Raises:
        ModelError: several networks under names that tell nothing of which is meant.
    """
    named = [place for place in _places(tree) if known(place.weights(tree))]
    if named:
        return _preferred(tree, named)
    strangers = [place for place in _places(tree, strange=True) if known(place.weights(tree))]
    if len({_shapes(place.weights(tree)) for place in strangers if not place.averaged}) > 1:
        names = ", ".join(place.name for place in strangers)
        raise ModelError(f"holds several networks ({names}): save the one that is meant alone")
    if strangers:
        return _preferred(tree, strangers)
    return next((place for place in _places(tree) if _has_tensors(place.weights(tree))), Place((), ""))


def _preferred(tree: dict[str, Any], places: list[Place]) -> Place:
    raw = [place for place in places if not place.averaged]
    whole = {_shapes(place.weights(tree)) for place in raw}
    averaged = [place for place in places if place.averaged and (not raw or _shapes(place.weights(tree)) in whole)]
    return [*averaged, *raw][0]


def twins(tree: dict[str, Any], place: Place) -> list[Place]:
    """The other places that hold the same network, one of the two averaged: what has to be replaced with it.

    An average may hold a part of the weights, without the statistics of normalisation say.
    """
    shapes = _shapes(place.weights(tree))

    def same(other: Place) -> bool:
        found = _shapes(other.weights(tree))
        return found == shapes if place.averaged else other.averaged and bool(found) and found <= shapes

    return [other for other in _places(tree, strange=True) if other != place and same(other)]


def averages_left(tree: dict[str, Any], places: list[Place]) -> list[str]:
    """Names of averages beside the weights that are in none of `places`: kept in a form that is not known here."""
    left: dict[str, None] = {}
    for depth in range(len(places[0].trail) + 1):
        trail = places[0].trail[:depth]
        for key, value in Place(trail, "").node(tree).items():
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


def _places(tree: dict[str, Any], *, strange: bool = False) -> Iterator[Place]:
    """Every place that could hold weights: deeper dicts first, in the order of their names; shorter prefixes first.

    Args:
        strange: under any name, not only those that are known; and under any prefix that all keys share, but for those
            of losses.
    """

    def walk(node: dict[str, Any], trail: tuple[str, ...]) -> Iterator[Place]:
        inner = [key for key, value in node.items() if isinstance(key, str) and isinstance(value, dict)]
        every = strange or len(node) == 1 or any(_is_average(key) for key in trail)
        for key in sorted((key for key in inner if every or _is_wrapper(key)), key=_rank):
            if len(trail) < _DEPTH and not key.startswith(_OTHERS):
                yield from walk(node[key], (*trail, key))
        if _has_tensors(node):
            keys = [key for key, value in node.items() if isinstance(key, str) and isinstance(value, Tensor)]
            yield from (Place(trail, prefix) for prefix in _prefixes(keys, strange))

    yield from walk(tree, ())


def _prefixes(keys: list[str], strange: bool) -> Iterator[str]:
    """The empty one, and what the keys start with: breadth first, so that no more is taken off than must be."""
    found = [""]
    for prefix in found:
        yield prefix
        rest = [key[len(prefix) :] for key in keys if key.startswith(prefix)]
        heads = list(dict.fromkeys(head + "." for head, dot, _ in (key.partition(".") for key in rest) if dot))
        for head in heads:
            shared = strange and all(key.startswith(head) or _LOSSES.search(key.split(".")[0]) for key in rest)
            if (head in _PREFIXES or _is_average(head) or shared) and prefix.count(".") < _DEPTH:
                found.append(prefix + head)


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

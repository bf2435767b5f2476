"""A recorder that repeats operations and no Python, as a CUDA graph does, on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operation(NamedTuple):
    """One call of an operation of PyTorch's, with the very tensors that it read and made."""

    call: Callable[..., Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    out: Any


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


class Tape(TorchDispatchMode):
    """The operations that run in its context, and the memory that they take."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.made: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations.append(Operation(func, args, kwargs or {}, out))
        given = {x.untyped_storage().data_ptr() for x in _tensors((args, kwargs))}
        self.made += [x for x in _tensors(out) if x.untyped_storage().data_ptr() not in given]
        return out

    def spoil(self) -> None:
        """Fill the memory that the operations took, as another recording would that shares it."""
        for x in self.made:
            x.fill_(math.nan if x.is_floating_point() else 0)

    def repeat(self) -> None:
        """Run every operation again, on the same memory."""
        for call, args, kwargs, out in self.operations:
            for to, x in zip(_tensors(out), _tensors(call(*args, **kwargs)), strict=True):
                if x.data_ptr() != to.data_ptr():  # neither a view nor the target of the operation
                    to.copy_(x)


class TapeRecorder:
    """Records work as tapes. Each repetition spoils the memory of all of them first."""

    def __init__(self) -> None:
        self.recorded = self.repeated = self.forgotten = 0
        self._tapes: list[Tape] = []

    def forget(self) -> None:
        self.forgotten += 1
        self._tapes.clear()

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        self.recorded += 1
        run()
        with Tape() as tape:
            out = run()
        self._tapes.append(tape)

        def replay() -> torch.Tensor:
            self.repeated += 1
            for one in self._tapes:
                one.spoil()
            tape.repeat()
            return out

        return replay

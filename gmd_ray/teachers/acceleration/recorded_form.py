"""The forward of a transformer as work on tensors alone, which a recording needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gmd_ray.teachers.flux.attention import Entry
from gmd_ray.teachers.flux.cache import Bank

INPUT, VALUES, KEYS_AND_VALUES = 0, 1, 2


class RecordedForm(NamedTuple):
    """All that tells one forward from another, beside the shapes of its tensors."""

    conditioning: tuple[str, ...]
    """Names of the model's arguments for time, guidance and prompt, or of the modulation's rows."""
    blocks: tuple[str, ...]
    """Names of the blocks in the bank; none without a bank."""
    kinds: tuple[int, ...]
    """The form of each entry: an attention's input, values alone, or keys and values."""
    writes: bool
    """The forward fills the bank; otherwise it reads it."""
    kv_from: int

    def banks(self, tensors: Sequence[torch.Tensor]) -> tuple[Bank | None, Bank | None]:
        """The model's arguments `kv_in` and `kv_out`, from the tensors of a bank in the order of `cache.tensors`."""
        if not self.blocks:
            return None, None
        rest, bank = iter(tensors), dict[str, Entry]()
        for name, kind in zip(self.blocks, self.kinds, strict=True):
            first = next(rest)
            bank[name] = first if kind == INPUT else (None, first) if kind == VALUES else (first, next(rest))
        return (None, bank) if self.writes else (bank, None)


def recorded_form(
    conditioning: Sequence[str], kv_in: Bank | None, kv_out: Bank | None, kv_from: int
) -> tuple[RecordedForm, Bank]:
    """The form of a forward with these arguments, and its bank, which is empty for none."""
    bank = (kv_in if kv_out is None else kv_out) or {}
    kinds = tuple(
        INPUT if isinstance(entry, torch.Tensor) else VALUES if entry[0] is None else KEYS_AND_VALUES
        for entry in bank.values()
    )
    writes = kv_out is not None and bool(bank)
    return RecordedForm(tuple(conditioning), tuple(bank), kinds, writes, kv_from if bank else 0), bank

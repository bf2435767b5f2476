"""Where an inversion's keys and values wait for the reconstruction: device or host, whole or in 8 bits (teacher.md 3).

A bank is what one evaluation leaves. Banks are written in the order of the inversion and read, each once, in the order
of the reconstruction, which is the reverse but for the two evaluations of a midpoint interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from gmd_ray.teachers.flux.attention import Entry
from gmd_ray.teachers.flux.sampler import Slot

Bank = Mapping[str, Entry]
"""Entries by block name."""

FP8 = torch.float8_e4m3fn
CHUNK = 1 << 30
"""Pinned memory is taken in pieces of this many bytes: PyTorch rounds each allocation up to a power of two."""
ALIGN = 256


class Banks(Protocol):
    """Either call says that the evaluation which used the bank given out before is issued to the device."""

    def open(self, slot: Slot) -> Bank:
        """Buffers for what that evaluation leaves."""
        ...

    def pop(self, slot: Slot, default: None, /) -> Bank | None:
        """What it left, or None where it left nothing."""
        ...


class OnDevice(dict[Slot, Bank]):
    """Every bank in the memory of the accelerator."""

    def __init__(self, empty: Callable[[], Bank]) -> None:
        super().__init__()
        self._empty = empty

    def open(self, slot: Slot) -> Bank:
        self[slot] = self._empty()
        return self[slot]


class Copies(Protocol):
    """Copies between host and device."""

    def start(self, to: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> object:
        """Begin once all that is issued so far is done, after the copies that were started before."""
        ...

    def wait(self, ticket: object) -> None:
        """What is issued from now on finds that copy done."""
        ...


class CopiesAtOnce:
    """On the CPU, where there is nothing to overlap."""

    def start(self, to: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> object:
        for target, source in zip(to, of, strict=True):
            target.copy_(source)
        return None

    def wait(self, ticket: object) -> None:
        pass


class CopiesOnStream:
    """On a CUDA stream of their own, beside the computation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, to: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> torch.cuda.Event:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for target, source in zip(to, of, strict=True):
                target.copy_(source, non_blocking=True)
                for x in (target, source):
                    if x.is_cuda:
                        x.record_stream(self._stream)  # not handed out anew while it is copied
            return self._stream.record_event()

    def wait(self, ticket: object) -> None:
        assert isinstance(ticket, torch.cuda.Event)
        torch.cuda.current_stream(self._device).wait_event(ticket)


class HostMemory:
    """Host memory that stays from one projection to the next, since pinning it takes seconds."""

    def __init__(self, pinned: bool, chunk: int = CHUNK) -> None:
        self._pinned, self._chunk = pinned, chunk
        self._chunks: list[torch.Tensor] = []
        self.rewind()

    def rewind(self) -> None:
        """Give all of it out anew."""
        self._at, self._used = 0, 0

    def like(self, x: torch.Tensor) -> torch.Tensor:
        """A tensor of that shape and type, its content undefined."""
        size = -(-x.nbytes // ALIGN) * ALIGN
        while self._at < len(self._chunks) and self._used + size > len(self._chunks[self._at]):
            self._at, self._used = self._at + 1, 0
        if self._at == len(self._chunks):
            self._chunks.append(torch.empty(max(self._chunk, size), dtype=torch.uint8, pin_memory=self._pinned))
        start, self._used = self._used, self._used + size
        return self._chunks[self._at][start : start + x.nbytes].view(x.dtype).view(x.shape)


class OnHost:
    """A few banks on the device; what the reconstruction needs later waits in host memory.

    A bank is copied out while the next evaluation of the inversion runs, and copied back while the reconstruction runs
    the one before. Those read first, which are written last, never leave.
    """

    def __init__(
        self, empty: Callable[[], Bank], order: Sequence[Slot], resident: int, memory: HostMemory, copies: Copies
    ) -> None:
        """
        Args:
            order: the evaluations as they will be read.
            resident: banks on the device, at least 2.
        """
        assert resident >= 2, "one is used while the other is copied"
        self._rank = {slot: rank for rank, slot in enumerate(order)}
        self._places = [empty() for _ in range(min(resident, len(order)))]
        self._memory, self._copies = memory, copies
        self._away: dict[int, list[torch.Tensor]] = {}
        self._leaving: dict[int, object] = {}  # by place
        self._coming: dict[int, object] = {}  # by rank
        self._written: int | None = None
        memory.rewind()

    def open(self, slot: Slot) -> Bank:
        self._send_away()
        self._written = rank = self._rank[slot]
        place = rank % len(self._places)
        if place in self._leaving:
            self._copies.wait(self._leaving.pop(place))
        return self._places[place]

    def pop(self, slot: Slot, default: None, /) -> Bank | None:
        if slot not in self._rank:
            return None
        self._send_away()
        rank = self._rank.pop(slot)
        if rank > 0:
            self._bring_back(rank - 1 + len(self._places))  # to the place of the one that was read before
        if rank in self._coming:
            self._copies.wait(self._coming.pop(rank))
        return self._places[rank % len(self._places)]

    def _send_away(self) -> None:
        rank, self._written = self._written, None
        if rank is None or rank < len(self._places):
            return
        place = rank % len(self._places)
        here = tensors(self._places[place])
        self._away[rank] = [self._memory.like(x) for x in here]
        self._leaving[place] = self._copies.start(self._away[rank], here)

    def _bring_back(self, rank: int) -> None:
        if rank in self._away:
            here = tensors(self._places[rank % len(self._places)])
            self._coming[rank] = self._copies.start(here, self._away.pop(rank))


class Rounded:
    """Banks kept in 8 bits (e4m3), with a scale for each token of each head.

    Not exact: a number comes back to within 1/16 of itself, or 1/458752 of the largest of its row (448 * 2**10).
    """

    def __init__(self, inner: Banks, whole: Bank) -> None:
        """
        Args:
            inner: keeps banks as `empty_packed` makes them.
            whole: the buffers that are written and read.
        """
        self._inner, self._whole = inner, whole
        self._written: Slot | None = None

    def open(self, slot: Slot) -> Bank:
        self._pack()
        self._written = slot
        return self._whole

    def pop(self, slot: Slot, default: None, /) -> Bank | None:
        self._pack()
        packed = self._inner.pop(slot, None)
        if packed is None:
            return None
        kept = iter(tensors(packed))
        for x in tensors(self._whole):
            number, scale = next(kept), next(kept)
            torch.mul(number.to(x.dtype), scale, out=x)
        return self._whole

    def _pack(self) -> None:
        slot, self._written = self._written, None
        if slot is not None:
            kept = iter(tensors(self._inner.open(slot)))
            for x in tensors(self._whole):
                number, scale = next(kept), next(kept)
                scale.copy_(_scale(x))
                number.copy_(x / scale)


def empty_packed(bank: Bank) -> Bank:
    """Room for a bank in 8 bits: the numbers and the scales of each of its tensors."""
    room: dict[str, Entry] = {}
    for i, x in enumerate(tensors(bank)):
        room[f"{i}.numbers"], room[f"{i}.scales"] = torch.empty_like(x, dtype=FP8), torch.empty_like(x[..., :1])
    return room


def tensors(bank: Bank) -> list[torch.Tensor]:
    """All of a bank's tensors, always in the same order."""
    found: list[torch.Tensor] = []
    for entry in bank.values():
        parts = (entry,) if isinstance(entry, torch.Tensor) else entry
        found += [x for x in parts if x is not None]
    return found


def _scale(x: torch.Tensor) -> torch.Tensor:
    """(..., 1) such that the largest number of each row becomes the largest of the format; never zero."""
    return x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / torch.finfo(FP8).max

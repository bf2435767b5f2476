"""Storage for the keys and values that an inversion leaves for its reconstruction: on the device or the host, in the
model's dtype or in 8 bits.

A bank holds what one evaluation leaves: an entry for each block with injection. Banks are written in the order of the
inversion and read once each in the order of the reconstruction, which is the reverse order of intervals; within an
interval both passes evaluate the entry before the middle. See docs/decisions.md, "Memory and cost".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from gmd_ray.teachers.flux.attention import Entry
from gmd_ray.teachers.flux.sampler import Slot

Bank = Mapping[str, Entry]
"""Block name -> entry, all of one evaluation."""

FP8 = torch.float8_e4m3fn
CHUNK = 1 << 30
"""Pinned memory is taken in pieces of this many bytes: PyTorch rounds each allocation up to a power of two."""
ALIGN = 256
"""Bytes to which each tensor in host memory is aligned."""


class Banks(Protocol):
    """All banks of one projection.

    A bank is valid until the next call of `open` or `pop`. By then, all work that uses it must have been issued to the
    device.
    """

    def open(self, slot: Slot) -> Bank:
        """Buffers that the inversion's evaluation fills."""
        ...

    def pop(self, slot: Slot, default: None, /) -> Bank | None:
        """The bank that the inversion left at that slot, or None; each bank is read once."""
        ...


class DeviceBanks(dict[Slot, Bank]):
    """Keeps every bank in the memory of the accelerator, until it is read."""

    def __init__(self, empty: Callable[[], Bank]) -> None:
        super().__init__()
        self._empty = empty

    def open(self, slot: Slot) -> Bank:
        self[slot] = self._empty()
        return self[slot]


class Copies(Protocol):
    """Copies between host and device that may run beside the computation."""

    def start(self, to: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> object:
        """Copy each tensor of `of` into the one at its place in `to`, after all work issued so far.

        Copies run in the order in which they were started.

        Returns:
            a ticket for `wait`.
        """
        ...

    def wait(self, ticket: object) -> None:
        """Make the work issued from now on wait for that copy."""
        ...


class ImmediateCopies:
    """Copies at once: on a CPU there is nothing to overlap."""

    def start(self, to: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> object:
        for target, source in zip(to, of, strict=True):
            target.copy_(source)
        return None

    def wait(self, ticket: object) -> None:
        pass


class StreamCopies:
    """Copies on a CUDA stream of their own, beside the computation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, to: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> torch.cuda.Event:
        # The copy stream first waits for the computation that fills or still reads these tensors.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for target, source in zip(to, of, strict=True):
                target.copy_(source, non_blocking=True)
                for x in (target, source):
                    if x.is_cuda:
                        # The allocator must not give this memory to another tensor while it is being copied.
                        x.record_stream(self._stream)
            return self._stream.record_event()

    def wait(self, ticket: object) -> None:
        assert isinstance(ticket, torch.cuda.Event)
        torch.cuda.current_stream(self._device).wait_event(ticket)


class HostMemory:
    """Host memory for banks. It is kept from one projection to the next, since pinning it takes seconds."""

    def __init__(self, pinned: bool, chunk: int = CHUNK) -> None:
        self._pinned, self._chunk = pinned, chunk
        self._chunks: list[torch.Tensor] = []
        self.rewind()

    def rewind(self) -> None:
        """Free all tensors given out so far; the memory itself is kept."""
        self._at, self._used = 0, 0

    def like(self, x: torch.Tensor) -> torch.Tensor:
        """A tensor of the shape and dtype of `x`, uninitialised."""
        size = -(-x.nbytes // ALIGN) * ALIGN
        # Tensors are laid one behind the other; a chunk whose rest is too small is left for the next one.
        while self._at < len(self._chunks) and self._used + size > len(self._chunks[self._at]):
            self._at, self._used = self._at + 1, 0
        if self._at == len(self._chunks):
            self._chunks.append(torch.empty(max(self._chunk, size), dtype=torch.uint8, pin_memory=self._pinned))
        start, self._used = self._used, self._used + size
        return self._chunks[self._at][start : start + x.nbytes].view(x.dtype).view(x.shape)


class HostBanks:
    """Keeps a few banks on the device and the others in host memory.

    Banks have ranks: rank 0 is read first. The device has places for `resident` banks, and the bank of rank r uses
    place r modulo `resident`. Since the last banks written are the first read, ranks below `resident` never leave. Any
    other bank is copied out while the next evaluation of the inversion runs, and copied back while the reconstruction
    runs the evaluation before its own.
    """

    def __init__(
        self, empty: Callable[[], Bank], order: Sequence[Slot], resident: int, memory: HostMemory, copies: Copies
    ) -> None:
        """
        Args:
            empty: makes an uninitialised bank on the device.
            order: the evaluations in the order in which their banks are read.
            resident: banks on the device, at least 2: one is used while the other is copied.
            memory: all that earlier projections kept there is overwritten.
        """
        assert resident >= 2, resident
        self._rank = {slot: rank for rank, slot in enumerate(order)}
        self._places = [empty() for _ in range(min(resident, len(order)))]
        self._memory, self._copies = memory, copies
        self._away: dict[int, list[torch.Tensor]] = {}
        """Rank -> tensors in host memory, of banks that left the device."""
        self._leaving: dict[int, object] = {}
        """Place -> ticket of the copy out of it."""
        self._coming: dict[int, object] = {}
        """Rank -> ticket of the copy back."""
        self._written: int | None = None
        """Rank of the bank that the inversion fills now."""
        memory.rewind()

    def open(self, slot: Slot) -> Bank:
        self._send_away()
        self._written = rank = self._rank[slot]
        place = rank % len(self._places)
        # The bank that had this place before must have left it, before the evaluation overwrites it.
        if place in self._leaving:
            self._copies.wait(self._leaving.pop(place))
        return self._places[place]

    def pop(self, slot: Slot, default: None, /) -> Bank | None:
        if slot not in self._rank:
            return None
        self._send_away()
        rank = self._rank.pop(slot)
        if rank > 0:
            # The evaluation of rank - 1 is issued, so its place is free for the next bank that belongs there. That copy
            # runs beside this evaluation.
            self._bring_back(rank - 1 + len(self._places))
        if rank in self._coming:
            self._copies.wait(self._coming.pop(rank))
        return self._places[rank % len(self._places)]

    def _send_away(self) -> None:
        """Start to copy the last written bank to the host, unless its rank may stay."""
        rank, self._written = self._written, None
        if rank is None or rank < len(self._places):
            return
        place = rank % len(self._places)
        here = tensors(self._places[place])
        self._away[rank] = [self._memory.like(x) for x in here]
        self._leaving[place] = self._copies.start(self._away[rank], here)

    def _bring_back(self, rank: int) -> None:
        """Start to copy the bank of that rank back to its place, if it is on the host."""
        if rank in self._away:
            here = tensors(self._places[rank % len(self._places)])
            self._coming[rank] = self._copies.start(here, self._away.pop(rank))


class Float8Banks:
    """Keeps banks in 8 bits (e4m3), with a scale for each row: each token of each head, or each token of an input.

    Rounding loses precision: the error of a number is at most 1/16 of itself or 1/458752 (1 / (448 * 2**10)) of the
    largest number of its row, whichever is more.
    """

    def __init__(self, inner: Banks, whole: Bank) -> None:
        """
        Args:
            inner: keeps packed banks, as `empty_packed` makes them.
            whole: one bank in the model's dtype, which every evaluation writes to or reads from.
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
        # A packed bank has two tensors for each of the whole one: (..., n) numbers and (..., 1) scales.
        for x in tensors(self._whole):
            number, scale = next(kept), next(kept)
            torch.mul(number.to(x.dtype), scale, out=x)
        return self._whole

    def _pack(self) -> None:
        """Round the last written bank into its packed one, before the whole one is used again."""
        slot, self._written = self._written, None
        if slot is not None:
            kept = iter(tensors(self._inner.open(slot)))
            for x in tensors(self._whole):
                number, scale = next(kept), next(kept)
                scale.copy_(_scale(x))
                number.copy_(x / scale)


class BankStorage:
    """Makes the banks of one projection after another in the same host memory: pinning it takes seconds."""

    def __init__(self) -> None:
        self.host: HostMemory | None = None
        self.copies: Copies | None = None

    def banks(
        self,
        empty: Callable[[], Bank],
        slots: Sequence[Slot],
        device: torch.device,
        location: str,
        dtype: str,
        resident: int,
    ) -> Banks:
        """Storage for the banks of these evaluations.

        Args:
            empty: makes an uninitialised bank on the device.
            location: device or host.
            dtype: `same` as the model's, or `fp8`.
            resident: banks that stay on the device while the others wait on the host.
        """

        def kept_in(empty: Callable[[], Bank]) -> Banks:
            if location == "device":
                return DeviceBanks(empty)
            if self.host is None or self.copies is None:
                cuda = device.type == "cuda"
                self.host = HostMemory(pinned=cuda)
                self.copies = StreamCopies(device) if cuda else ImmediateCopies()
            return HostBanks(empty, slots, resident, self.host, self.copies)

        if dtype == "same":
            return kept_in(empty)
        # One bank in the model's dtype is written and read by the model; the packed ones wait in 8 bits.
        whole = empty()
        return Float8Banks(kept_in(lambda: empty_packed(whole)), whole)


def empty_packed(bank: Bank) -> Bank:
    """An uninitialised packed bank: for each tensor (..., n) of `bank`, numbers in 8 bits and scales (..., 1)."""
    room: dict[str, Entry] = {}
    for i, x in enumerate(tensors(bank)):
        room[f"{i}.numbers"], room[f"{i}.scales"] = torch.empty_like(x, dtype=FP8), torch.empty_like(x[..., :1])
    return room


def tensors(bank: Bank) -> list[torch.Tensor]:
    """All tensors of a bank, in an order that depends on its names and kinds of entries alone."""
    found: list[torch.Tensor] = []
    for entry in bank.values():
        parts = (entry,) if isinstance(entry, torch.Tensor) else entry
        found += [x for x in parts if x is not None]
    return found


def _scale(x: torch.Tensor) -> torch.Tensor:
    """(..., n) -> (..., 1), positive: divided by it, the largest number of a row is the largest of the 8-bit format."""
    return x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / torch.finfo(FP8).max

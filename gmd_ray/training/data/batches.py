"""A worker's share of each global batch as tensors, prepared ahead of the step that needs it."""

from __future__ import annotations

import collections
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from gmd_ray.images.degradation.degradations import sample_rng
from gmd_ray.images.files.encode import to_tensor
from gmd_ray.training.data.datasets import Crops
from gmd_ray.training.data.mixing import Mixture, Stream


class Batch(NamedTuple):
    """A worker's share of a global batch."""

    lq: Tensor
    """Low-quality crops, (B, 3, patch, patch) in [0, 1]."""
    hq: Tensor
    """Their targets, (B, 3, patch * scale, patch * scale) in [0, 1]."""
    source: Tensor
    """Mask of shape (B,): True for crops of source pairs, False for crops of accepted pairs."""
    keys: Tensor
    """Seeds of shape (B,), int64, on the CPU, for random numbers that a student draws for a crop; unique in a run."""

    def digest(self) -> str:
        """A digest of the crops as an unordered set, which compares global batches of any number of workers."""
        crops = (lq.numpy().tobytes() + hq.numpy().tobytes() for lq, hq in zip(self.lq, self.hq, strict=True))
        return hashlib.sha256(b"".join(sorted(hashlib.sha256(crop).digest() for crop in crops))).hexdigest()

    @classmethod
    def joined(cls, shares: Iterable[Batch]) -> Batch:
        """The global batch, from the shares of its workers."""
        return cls(*(torch.cat(parts) for parts in zip(*shares, strict=True)))


class Batches:
    """Maker of batches: a pure function of (seed, step, rank, world size), safe to call from any thread."""

    def __init__(
        self,
        mixture: Mixture,
        streams: Mapping[Stream, Crops],
        seed: int,
        rank: int,
        world_size: int,
        pin: bool = False,
    ) -> None:
        self._mixture, self._streams, self._seed = mixture, streams, seed
        self._rank, self._world_size, self._pin = rank, world_size, pin

    def __call__(self, step: int) -> Batch:
        crops = []
        share = self._mixture.share(step, self._rank, self._world_size)
        for draw in share:
            rng = sample_rng(self._seed, "crop", draw.stream, draw.position)
            crops.append(self._streams[draw.stream].crop(draw.index, draw.epoch, rng))
        keys = torch.tensor(
            [int(sample_rng(self._seed, "loss", draw.stream, draw.position).integers(1 << 63)) for draw in share]
        )
        lq, hq = (to_tensor(side) for side in zip(*crops, strict=True))
        source = torch.tensor([draw.stream == "source" for draw in share])
        if self._pin:
            lq, hq, source = lq.pin_memory(), hq.pin_memory(), source.pin_memory()
        return Batch(lq, hq, source, keys)


class Prefetcher:
    """Makes the batches of the coming steps in a few threads (decoding and cropping release the GIL).

    Args:
        batches: makes the batch of a step.
        start: the first step.
        stop: one past the last step.
        threads: number of threads; 2 * threads + 2 batches are ready or being made.
    """

    def __init__(self, batches: Callable[[int], Batch], start: int, stop: int, threads: int) -> None:
        self._batches, self._next, self._stop, self._depth = batches, start, stop, 2 * threads + 2
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="batches")
        self._queue: collections.deque[Future[Batch]] = collections.deque()
        self.waited_s = 0.0
        """Seconds that calls of `get` have waited so far."""

    def __enter__(self) -> Prefetcher:
        self._fill()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def get(self) -> Batch:
        """The next step's batch. Raises the exception that making it raised."""
        future = self._queue.popleft()
        self._fill()
        started = time.monotonic()
        try:
            return future.result()
        finally:
            self.waited_s += time.monotonic() - started

    def _fill(self) -> None:
        while len(self._queue) < self._depth and self._next < self._stop:
            self._queue.append(self._pool.submit(self._batches, self._next))
            self._next += 1

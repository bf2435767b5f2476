"""A worker's share of each global batch as tensors, made ahead of the step that needs them."""

from __future__ import annotations

import collections
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from torch import Tensor

from gmd_ray.images.degradations import sample_rng
from gmd_ray.images.encode import to_tensor
from gmd_ray.training.data import Crops
from gmd_ray.training.mixing import Mixture, Stream

Batch = tuple[Tensor, Tensor]
"""(lq, hq): (B, 3, patch, patch) and (B, 3, patch * scale, patch * scale)."""


class Batches:
    """The batch of a step: a pure function of (seed, step, rank, world size), safe to call from any thread."""

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
        for draw in self._mixture.share(step, self._rank, self._world_size):
            rng = sample_rng(self._seed, "crop", draw.stream, draw.position)
            crops.append(self._streams[draw.stream].crop(draw.index, draw.epoch, rng))
        lq, hq = (to_tensor(side) for side in zip(*crops, strict=True))
        return (lq.pin_memory(), hq.pin_memory()) if self._pin else (lq, hq)


class Prefetcher:
    """Makes the batches of the coming steps in a few threads (decoding and cropping release the GIL).

    Args:
        batches: what makes the batch of a step.
        start: first step.
        stop: one past the last.
        threads: at work at once; twice as many batches and two wait or are being made.
    """

    def __init__(self, batches: Batches, start: int, stop: int, threads: int) -> None:
        self._batches, self._next, self._stop, self._depth = batches, start, stop, 2 * threads + 2
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="batches")
        self._queue: collections.deque[Future[Batch]] = collections.deque()
        self.waited_s = 0.0
        """Seconds that `get` has waited so far."""

    def __enter__(self) -> Prefetcher:
        self._fill()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def get(self) -> Batch:
        """The next step's batch; raises what making it raised."""
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

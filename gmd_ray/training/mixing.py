"""Which samples make up each global batch: a pure function of (seed, step, slot), whatever the number of workers.

A share `source_ratio` of every global batch comes from the source pairs, the rest from the accepted target pairs. Where
the share is no whole number, the source gets the spare slot as soon as its running total falls behind, so the total
after any step is exact to less than one slot: batches of 32 at 0.9 hold 29, 29, 29, 29, 28, 29, ... source pairs.
(Mixing two Ray datasets by weight only gets this right on average: peers.md X4.)

Each stream is cycled, reshuffled for every pass; where it stands is the number of slots it has had, in closed form, so
there is nothing to save in a checkpoint but the step.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from gmd_ray.images.degradations import sample_rng

Stream = Literal["source", "target"]


@dataclass(frozen=True)
class Draw:
    """One slot of a global batch."""

    stream: Stream
    index: int
    """Of the sample in its stream."""
    epoch: int
    """Earlier passes over the stream, which is how often this sample has been drawn before."""
    position: int
    """Earlier slots of the stream; the crop and the flips hang on it."""


class Mixture:
    """The order in which source and target samples are drawn.

    Args:
        batch_size: of the global batch.
        source_ratio: in [0, 1]; read as the decimal it is written as, so that 0.9 is 9/10.
        n_source: source samples; may be 0 where the ratio is 0.
        n_target: target samples; may be 0 where the ratio is 1.
        seed: of the run.
    """

    def __init__(self, batch_size: int, source_ratio: float, n_source: int, n_target: int, seed: int) -> None:
        assert 0 <= source_ratio <= 1, source_ratio
        assert n_source > 0 or source_ratio == 0, "source pairs are wanted and there are none"
        assert n_target > 0 or source_ratio == 1, "target pairs are wanted and there are none"
        self.batch_size = batch_size
        self._per_step = batch_size * Fraction(str(source_ratio))
        self._sizes = {"source": n_source, "target": n_target}
        self._seed = seed

    def composition(self, step: int) -> tuple[int, int]:
        """Source and target slots of the global batch of a step (from 0)."""
        n_source = self._source_before(step + 1) - self._source_before(step)
        return n_source, self.batch_size - n_source

    def batch(self, step: int) -> list[Draw]:
        """The slots of the global batch, source first."""
        n_source, n_target = self.composition(step)
        source_before = self._source_before(step)
        target_before = step * self.batch_size - source_before
        return [self._draw("source", source_before + i) for i in range(n_source)] + [
            self._draw("target", target_before + i) for i in range(n_target)
        ]

    def share(self, step: int, rank: int, world_size: int) -> list[Draw]:
        """The slots of one worker: dealt in turn, so shares differ by one slot at most, and so do their streams."""
        return self.batch(step)[rank::world_size]

    def _source_before(self, step: int) -> int:
        return math.ceil(step * self._per_step)

    def _draw(self, stream: Stream, position: int) -> Draw:
        size = self._sizes[stream]
        epoch, place = divmod(position, size)
        return Draw(stream, int(_order(self._seed, stream, epoch, size)[place]), epoch, position)


@functools.lru_cache(maxsize=8)
def _order(seed: int, stream: Stream, epoch: int, size: int) -> np.ndarray:
    return sample_rng(seed, "order", stream, epoch).permutation(size)

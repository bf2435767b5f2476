"""Which samples make up each global batch: a pure function of (seed, step, slot), whatever the number of workers.

A share `source_ratio` of every global batch comes from the source pairs, the rest from the accepted target pairs. Where
the share is no whole number, the source gets the spare slot as soon as its running total falls behind, so the total
after any step is exact to less than one slot: batches of 32 at 0.9 hold 29, 29, 29, 29, 28, 29, ... source pairs.
(Mixing two Ray datasets by weight only gets this right on average: peers.md X4.)

That is `training.mixing=batch`, how the paper's "0.9 ratio (90% in-distribution data)" reads. `training.mixing=loss`
reads lambda of eq. 5 as a weight instead (restoration.md 1.4): half of each global batch is source and half target (an
odd batch gives the spare slot by the same rule of running totals), and the step's loss is

    source_ratio * (mean loss of its source crops) + (1 - source_ratio) * (mean loss of its target crops).

Its expectation is that of `batch`; the variance of the target's gradient is smaller and the source's larger. At ratios
1 and 0 both are the plain mean over a batch of one stream.

Each stream is cycled, reshuffled for every pass; where it stands is the number of slots it has had, in closed form, so
there is nothing to save in a checkpoint but the step.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np

from gmd_ray.images.degradation.degradations import sample_rng

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


class Weights(NamedTuple):
    """What a crop's loss counts in its step; over the global batch they sum to 1."""

    source: float
    target: float


class Mixture:
    """The order in which source and target samples are drawn.

    Args:
        batch_size: of the global batch.
        source_ratio: in [0, 1]; read as the decimal it is written as, so that 0.9 is 9/10.
        n_source: source samples; may be 0 where the ratio is 0.
        n_target: target samples; may be 0 where the ratio is 1.
        seed: of the run.
        mode: batch or loss: whether the ratio is the share of slots or the weight in the loss.
    """

    def __init__(
        self, batch_size: int, source_ratio: float, n_source: int, n_target: int, seed: int, mode: str = "batch"
    ) -> None:
        assert 0 <= source_ratio <= 1, source_ratio
        assert n_source > 0 or source_ratio == 0, "source pairs are wanted and there are none"
        assert n_target > 0 or source_ratio == 1, "target pairs are wanted and there are none"
        self.batch_size = batch_size
        self._by_loss = mode == "loss" and 0 < source_ratio < 1
        assert batch_size > 1 or not self._by_loss, "both streams are wanted in a batch of one"
        self._ratio = source_ratio
        self._per_step = batch_size * (Fraction(1, 2) if self._by_loss else Fraction(str(source_ratio)))
        self._sizes = {"source": n_source, "target": n_target}
        self._seed = seed

    def composition(self, step: int) -> tuple[int, int]:
        """Source and target slots of the global batch of a step (from 0)."""
        n_source = self._source_before(step + 1) - self._source_before(step)
        return n_source, self.batch_size - n_source

    def state(self, step: int) -> dict[str, int]:
        """Where the sampler stands before a step: all there is to it, kept in a checkpoint to be held against."""
        source = self._source_before(step)
        return {"seed": self._seed, "step": step, "source": source, "target": step * self.batch_size - source}

    def weights(self, step: int) -> Weights:
        """Of a source and of a target crop in the loss of a step."""
        if not self._by_loss:
            return Weights(1 / self.batch_size, 1 / self.batch_size)
        n_source, n_target = self.composition(step)
        return Weights(self._ratio / n_source, (1 - self._ratio) / n_target)

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

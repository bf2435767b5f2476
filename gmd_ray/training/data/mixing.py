"""Selection of the samples of each global batch: a pure function of (seed, step, slot), for any number of workers.

A share `source_ratio` of every global batch comes from the source pairs, the rest from the accepted pairs. If the share
is not a whole number of slots, the source gets one more slot as soon as its running total falls behind, so that the
total after any step is exact to less than one slot: batches of 32 at 0.9 hold 29, 29, 29, 29, 28, 29, ... source pairs.
(`ray.data.Dataset.mix` interleaves whole blocks, so that its share is right on average only.)

That is `training.mixing=batch`, the literal reading of the paper's "0.9 ratio (90% in-distribution data)".
`training.mixing=loss` reads lambda of eq. 5 as a weight instead (`docs/method.md`, "Mixing and losses"): half of each
global batch is source and half target (an odd batch gives the spare slot by the same rule of running totals), and the
loss of a step is

    source_ratio * (mean loss of its source crops) + (1 - source_ratio) * (mean loss of its target crops).

Its expectation is the same as that of `batch`; the target's gradient has a smaller variance and the source's a larger
one. At ratios 1 and 0 both modes are the plain mean over a batch of one stream.

Each stream is repeated, in a new random order for every pass. Its position is the number of slots that it has had,
which has a closed form, so that a checkpoint needs to hold the step alone.
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
    """Number of the sample in its stream."""
    epoch: int
    """Number of earlier passes over the stream, in each of which this sample was drawn once."""
    position: int
    """Number of earlier slots of the stream; seeds the crop and its flips."""


class Weights(NamedTuple):
    """Weights of one crop's loss in the loss of its step; they sum to 1 over the global batch."""

    source: float
    target: float


class Mixture:
    """The order in which source and target samples are drawn.

    Args:
        batch_size: size of the global batch.
        source_ratio: a number in [0, 1], taken as the decimal that it is written as, so that 0.9 is exactly 9/10.
        n_source: number of source samples; may be 0 if the ratio is 0.
        n_target: number of target samples; may be 0 if the ratio is 1.
        seed: seed of the run.
        mode: "batch" if the ratio is the share of slots, "loss" if it is the weight in the loss.
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
        """The position of the sampler before a step; kept in a checkpoint to check that a resumed run has the same."""
        source = self._source_before(step)
        return {"seed": self._seed, "step": step, "source": source, "target": step * self.batch_size - source}

    def weights(self, step: int) -> Weights:
        """The weights of a source crop and of a target crop in the loss of a step."""
        if not self._by_loss:
            return Weights(1 / self.batch_size, 1 / self.batch_size)
        n_source, n_target = self.composition(step)
        return Weights(self._ratio / n_source, (1 - self._ratio) / n_target)

    def batch(self, step: int) -> list[Draw]:
        """The slots of the global batch of a step, source first."""
        n_source, n_target = self.composition(step)
        source_before = self._source_before(step)
        target_before = step * self.batch_size - source_before
        return [self._draw("source", source_before + i) for i in range(n_source)] + [
            self._draw("target", target_before + i) for i in range(n_target)
        ]

    def share(self, step: int, rank: int, world_size: int) -> list[Draw]:
        """The slots of one worker, dealt in turn: shares differ by one slot at most, in each stream as well."""
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

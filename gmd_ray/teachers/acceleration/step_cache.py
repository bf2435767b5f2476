"""First-block cache: an evaluation in which the first block tells that little has changed reuses the blocks after it.

The method is that of ParaAttention and of diffusers' `FirstBlockCache`, with a decision for each image by itself, and
with evaluations that are never skipped: those that write or read keys and values of an injection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial

import torch

log = logging.getLogger("gmd_ray")

Rest = Callable[[torch.Tensor | None], torch.Tensor]
"""The blocks after the first: indices (n,) of images, or None for all -> their image tokens (n, S, dim)."""
Finish = Callable[[torch.Tensor, torch.Tensor, Rest], torch.Tensor]
"""The end of a forward: image tokens (B, S, dim) before and after the first block, and the blocks after it -> image
tokens (B, S, dim) after the last block."""


@dataclass
class EvaluationCount:
    """Evaluations of the transformer, each of one image or tile under one prompt."""

    evaluations: int = 0
    """All of them."""
    skipped: int = 0
    """Those of them in which the first block alone ran."""

    def __str__(self) -> str:
        share = 100 * self.skipped / self.evaluations if self.evaluations else 0.0
        return f"{share:.0f} % of the evaluations were skipped ({self.skipped:,} of {self.evaluations:,})"


@dataclass
class _FullEvaluation:
    """The last full evaluation of each image: what the blocks added to its tokens, (B, S, dim) each."""

    first: torch.Tensor
    """By the first block."""
    rest: torch.Tensor
    """By all blocks after it."""


class StepCache:
    """Decides for each image whether the blocks after the first run, or their last result is added again."""

    def __init__(self, threshold: float) -> None:
        """
        Args:
            threshold: the blocks after the first are skipped below this relative change of what the first block adds.
        """
        self.threshold = threshold
        self.count = EvaluationCount()
        """Since the last `take_count`."""
        self._kept: dict[Hashable, _FullEvaluation] = {}
        self._told = False

    def start_pass(self) -> None:
        """Forget all evaluations: those of another image, or of the other pass, are no reference."""
        self._kept.clear()

    def end_projection(self) -> None:
        """Free the references, and log what the first projection skipped."""
        self._kept.clear()
        if not self._told:
            self._told = True
            log.info("teacher.step_cache=%g: in the first projection %s", self.threshold, str(self.count))

    def take_count(self) -> EvaluationCount:
        """The evaluations since the last call."""
        count, self.count = self.count, EvaluationCount()
        return count

    def finish(self, key: Hashable, *, full: bool) -> Finish:
        """The end of one forward.

        Args:
            key: evaluations are compared with the last one of the same key, such as the prompt.
            full: skip nothing, and let the evaluation be the reference of the next ones.
        """
        return partial(self._finish, key, full)

    def _finish(self, key: Hashable, full: bool, before: torch.Tensor, after: torch.Tensor, rest: Rest) -> torch.Tensor:
        first, kept = after - before, self._kept.get(key)
        batch = len(first)
        self.count.evaluations += batch
        if full or kept is None:
            needed = list(range(batch))
        else:
            # A change that is not a number is not below the threshold, and neither is one from nothing.
            skips = relative_change(first, kept.first) < self.threshold
            needed = [i for i, skip in enumerate(skips.tolist()) if not skip]
        self.count.skipped += batch - len(needed)
        if kept is None or len(needed) == batch:
            out = rest(None)
            self._kept[key] = _FullEvaluation(first, out - after)
            return out
        out = after + kept.rest
        if needed:
            rows = torch.tensor(needed, device=after.device)
            ran = rest(rows)
            out[rows], kept.first[rows], kept.rest[rows] = ran, first[rows], ran - after[rows]
        return out


def relative_change(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """The mean of |new - old| over the mean of |old|, for each image by itself: (B, S, dim) twice -> (B,) float32."""
    change, size = (x.abs().mean(dim=(1, 2), dtype=torch.float32) for x in (new - old, old))
    return change / size


def images_at(x: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """The images of (B, ...) at these indices, or all where `rows` is None; (1, ...) stands for any number of them."""
    return x if rows is None or len(x) == 1 else x.index_select(0, rows)

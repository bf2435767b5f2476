"""The difference between two methods over the images of a test set: interval, direction, and a word for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gmd_ray.evaluation.statistics import LEVEL, holm, mean_interval

BETTER, WORSE, UNSEEN, TOO_FEW = "better", "worse", "no difference seen", "too few images"


@dataclass(frozen=True)
class Difference:
    """The mean difference between a method and a reference, over the images on which both have a value."""

    mean: float
    """Method minus reference: of the metric's values, or of their distances to the ground truth's (`to_truth`)."""
    low: float | None
    """Lower end of the 95 % interval of `mean` (`statistics.mean_interval`); None for too few images."""
    high: float | None
    """Upper end of the interval."""
    n: int
    """Number of images with both values."""
    only_reference: int
    """Number of images on which the reference has a value and the method has none."""
    lower_is_better: bool = False
    """True where a negative `mean` is the better one; always so for a distance to the truth."""
    to_truth: bool = False
    """True for a no-reference metric on images with ground truth: `mean` is then the difference of the distances
    |value - value of the ground truth|, for such a score may call noise better than the truth."""
    p: float | None = None
    """Two-sided p-value of no difference; None where there is no interval."""
    adjusted_p: float | None = None
    """`p` after Holm's correction over the table that the difference is part of; `p` itself for a single one."""

    @property
    def gain(self) -> float:
        """The mean, positive where the method is the better one."""
        return -self.mean if self.lower_is_better else self.mean

    @property
    def word(self) -> str:
        """One of better, worse, no difference seen (the adjusted p-value is 0.05 or more), and too few images."""
        p = self.p if self.adjusted_p is None else self.adjusted_p
        if p is None:
            return TOO_FEW
        if not p < 1 - LEVEL:
            return UNSEEN
        return BETTER if self.gain > 0 else WORSE

    @property
    def phrase(self) -> str:
        """The word as a table says it: "closer to the truth" for a better distance, "farther from the truth"."""
        distances = {BETTER: "closer to the truth", WORSE: "farther from the truth"}
        return distances.get(self.word, self.word) if self.to_truth else self.word


def paired(
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    *,
    higher_is_better: bool = True,
    truth: Mapping[str, float] | None = None,
) -> Difference | None:
    """`ours` minus `theirs`, paired by image; None if no image has both.

    Args:
        ours, theirs: values by image.
        higher_is_better: the direction of the metric.
        truth: values of the ground truth by image; distances to them are compared then.
    """
    if truth:
        ours, theirs = distances(ours, truth), distances(theirs, truth)
    gaps = [ours[image] - theirs[image] for image in sorted(ours.keys() & theirs.keys())]
    if not gaps:
        return None
    low, high, p = mean_interval(gaps) or (None, None, None)
    return Difference(
        mean=math.fsum(gaps) / len(gaps),
        low=low,
        high=high,
        n=len(gaps),
        only_reference=len(theirs.keys() - ours.keys()),
        lower_is_better=bool(truth) or not higher_is_better,
        to_truth=bool(truth),
        p=p,
        adjusted_p=p,
    )


def corrected(found: Sequence[Difference | None]) -> list[Difference | None]:
    """Correct differences that are shown together for their number after Holm; those without a p-value stay.

    Args:
        found: uncorrected differences, and None for comparisons that could not be made.
    """
    judged = [difference for difference in found if difference is not None and difference.p is not None]
    adjusted = iter(holm([difference.p for difference in judged if difference.p is not None]))
    return [
        difference if difference is None or difference.p is None else replace(difference, adjusted_p=next(adjusted))
        for difference in found
    ]


def distances(values: Mapping[str, float], truth: Mapping[str, float]) -> dict[str, float]:
    """The distance of each value to the ground truth's, for the images of which both are known."""
    return {image: abs(value - truth[image]) for image, value in values.items() if image in truth}

"""Gains of single images: by how much the adapted student beats the baseline on each of them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from gmd_ray.evaluation.actor import ADAPTED
from gmd_ray.evaluation.differences import Difference
from gmd_ray.evaluation.results import WHOLE_SET, Evaluation
from gmd_ray.evaluation.table import BASELINE
from gmd_ray.quality import known_metrics


@dataclass(frozen=True)
class Gains:
    """The gains over one test set by one metric."""

    dataset: str
    metric: str
    difference: Difference
    """Adapted student minus baseline."""
    by_image: dict[str, float]
    """Gain by image id: positive is better, whatever the metric's direction."""

    @property
    def unit(self) -> str:
        """The unit with a space before it; empty where the metric has none."""
        return " dB" if self.metric.startswith("psnr") else ""

    @property
    def is_blind(self) -> bool:
        """True for a no-reference metric of photos without ground truth: it may take noise for quality."""
        info = known_metrics().get(self.metric)
        return info is not None and not info.needs_reference and not self.difference.to_truth

    @property
    def improved(self) -> int:
        """The number of images with a positive gain."""
        return sum(gain > 0 for gain in self.by_image.values())

    def most_improved(self, count: int) -> list[str]:
        """At most `count` ids with a positive gain, largest first."""
        return [image for image in self._ranked[:count] if self.by_image[image] > 0]

    def most_harmed(self, count: int) -> list[str]:
        """At most `count` ids with a negative gain, largest loss first."""
        return [image for image in self._ranked[::-1][:count] if self.by_image[image] < 0]

    def typical(self, count: int, among: list[str]) -> list[str]:
        """Ids whose gain is nearest the median of all gains, nearest first; never chosen by how they look."""
        median = statistics.median(self.by_image.values())
        known = [image for image in among if image in self.by_image]
        return sorted(known, key=lambda image: (abs(self.by_image[image] - median), image))[:count]

    @property
    def _ranked(self) -> list[str]:
        return sorted(self.by_image, key=lambda image: (-self.by_image[image], image))

    def text(self, image: str) -> str:
        """The gain of an image with its sign and unit; empty for an unknown one."""
        return signed(self.by_image[image], self.unit) if image in self.by_image else ""


def find_gains(evaluation: Evaluation, dataset: str) -> Gains | None:
    """The gains by the first metric that has a value for each image; None without an adapted student.

    A no-reference metric on images with ground truth counts by its distance to the truth's value, as in the tables.
    """
    for metric in evaluation.metrics:
        difference = evaluation.difference(ADAPTED, dataset, metric, against=BASELINE)
        after, before = (evaluation.values(name, dataset, metric) for name in (ADAPTED, BASELINE))
        both = sorted((after.keys() & before.keys()) - {WHOLE_SET})
        if difference is None or not both:
            continue
        truth = evaluation.truth(dataset, metric)
        if truth:
            gaps = {i: abs(before[i] - truth[i]) - abs(after[i] - truth[i]) for i in both if i in truth}
        else:
            sign = 1 if evaluation.directions[metric] else -1
            gaps = {image: sign * (after[image] - before[image]) for image in both}
        if gaps:
            return Gains(dataset, metric, difference, gaps)
    return None


def signed(value: float, unit: str = "") -> str:
    """A difference with its sign and two decimals, three significant digits where it is small: `+1.23 dB`, `−0.0042`.

    Units without a name have the range of a score such as SSIM, where two decimals would show nothing.
    """
    text = f"{value:+.2f}" if unit or abs(value) >= 1 else f"{value:+.4f}"
    return text.replace("-", "−") + unit

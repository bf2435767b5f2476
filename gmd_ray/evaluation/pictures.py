"""The choice of the test images whose pictures an evaluation keeps for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from gmd_ray.evaluation.actor import ADAPTED, SCHEMA
from gmd_ray.evaluation.items import Item
from gmd_ray.evaluation.results import TRUTH
from gmd_ray.evaluation.table import BASELINE


class KeptPictures:
    """Keeps the pictures of images spread over the test sets, and of the target images that gain and lose most.

    Which images gain most is known when all are measured, so that every target image is pictured; of those that came,
    the pictures of at most `2 * count` are held beside those of the spread ones.

    Args:
        items: the test images; those with `picture` are kept in any case, and every target image gets `picture`.
        metrics: the first one that has values of baseline and adapted student for an image decides on it.
        count: number of the most improved and of the most harmed images.
    """

    def __init__(self, items: Sequence[Item], metrics: Sequence[str], count: int) -> None:
        self.metrics, self.count = metrics, count
        self.spread = {(item["dataset"], item["id"]) for item in items if item["picture"]}
        self.gains: dict[str, float] = {}
        self.pictures = SCHEMA.empty_table()
        for item in items:
            if item["dataset"] == "target" and count:
                item["picture"] = True

    def take(self, rows: pa.Table) -> pa.Table:
        """Take the pictures out of rows of schema `actor.SCHEMA`, in which every image is whole; returns the others."""
        has_picture = pc.field("png").is_valid()
        values: dict[str, dict[tuple[str, str], tuple[float, bool]]] = {}
        for row in rows.filter((pc.field("dataset") == "target") & pc.field("value").is_valid()).to_pylist():
            found = values.setdefault(row["id"], {})
            found[row["student"], row["metric"]] = row["value"], row["higher_is_better"]
        for image, of in values.items():
            if (gain := self._gain(of)) is not None:
                self.gains[image] = gain
        ranked = sorted(self.gains, key=lambda image: (self.gains[image], image))
        extremes = {("target", image) for image in [*ranked[: self.count], *ranked[len(ranked) - self.count :]]}
        held = pa.concat_tables([self.pictures, rows.filter(has_picture)])
        keys = zip(held["dataset"].to_pylist(), held["id"].to_pylist(), strict=True)
        wanted = self.spread | extremes
        self.pictures = held.filter(pa.array([key in wanted for key in keys], pa.bool_()))
        return rows.filter(~has_picture)

    def _gain(self, of: Mapping[tuple[str, str], tuple[float, bool]]) -> float | None:
        """The gain of one image, as `Difference.gain` counts it; None where no metric has both values."""
        for metric in self.metrics:
            if (BASELINE, metric) not in of or (ADAPTED, metric) not in of:
                continue
            (before, higher), (after, _) = of[BASELINE, metric], of[ADAPTED, metric]
            if (TRUTH, metric) in of:
                truth = of[TRUTH, metric][0]
                return abs(before - truth) - abs(after - truth)
            return after - before if higher else before - after
        return None

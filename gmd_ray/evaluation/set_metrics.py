"""Metrics of whole test sets, such as FID: their features leave the stream as they arrive, and end as one value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gmd_ray.errors import DataError
from gmd_ray.evaluation.results import TRUTH, WHOLE_SET
from gmd_ray.quality import FeatureSet, compare_sets, known_metrics


class SetMetrics:
    """Features by test set, method and metric, in bounded memory however many images there are."""

    def __init__(self) -> None:
        self._sets: dict[tuple[str, str, str], FeatureSet] = {}

    def take(self, table: pa.Table) -> pa.Table:
        """Take the rows with features out of a table of schema `actor.SCHEMA`; returns the others."""
        has = pc.field("features").is_valid()
        for row in table.filter(has).to_pylist():
            features = self._sets.setdefault((row["dataset"], row["student"], row["metric"]), FeatureSet())
            features.add(np.frombuffer(row["features"], np.float32))
        return table.filter(~has)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row of `results.ROWS` for each test set, method and metric."""
        for (dataset, student, metric), features in sorted(self._sets.items()):
            if student == TRUTH:
                continue
            truths = self._sets.get((dataset, TRUTH, metric), FeatureSet())
            higher = known_metrics()[metric].higher_is_better
            row = {"dataset": dataset, "id": WHOLE_SET, "student": student, "metric": metric}
            try:
                value = compare_sets(metric, features, truths)
                yield {**row, "higher_is_better": higher, "value": value}
            except DataError as error:
                yield {**row, "higher_is_better": higher, "error": str(error)}

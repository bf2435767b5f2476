"""The figures of a sweep: values of every finished cell by seed and image, and differences between rows."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gmd_ray.ablation.cells import Cell, baseline_cell
from gmd_ray.ablation.intervals import two_way_interval
from gmd_ray.ablation.run import read_facts
from gmd_ray.ablation.sweep import Ablation, SweepRow
from gmd_ray.evaluation import Difference, Evaluation, load_evaluation
from gmd_ray.evaluation.differences import distances
from gmd_ray.evaluation.results import TRUTH, UNTOUCHED, InferenceCost
from gmd_ray.evaluation.statistics import holm

Column = tuple[str, str]
"""(test set, metric)."""


@dataclass(frozen=True)
class RowFigures:
    """A row of the table with the cells that are finished."""

    row: SweepRow
    cells: tuple[Cell, ...]
    """Finished cells, in the order of their seeds."""
    evaluations: tuple[Evaluation, ...]
    """One of each cell that measured a student."""
    facts: tuple[dict[str, Any], ...]
    """Facts of each cell (`run.run_cell`)."""
    baseline: Evaluation | None
    """The unadapted student that the row started from; None before it has been measured."""
    seeds: int
    """Cells that the row will have."""

    @property
    def columns(self) -> list[Column]:
        """The columns that the row has values for."""
        known = dict.fromkeys((d, m) for e in self.evaluations for d in e.datasets for m in e.metrics)
        return [column for column in known if any(self.values(*column))]

    def values(self, dataset: str, metric: str) -> list[dict[str, float]]:
        """Values by image, for each finished seed, in the order of `cells`; empty for a seed without values."""
        return [
            evaluation.values(cell.measured, dataset, metric)
            for cell, evaluation in zip(self.cells, self.evaluations, strict=False)
        ]

    def mean(self, dataset: str, metric: str) -> float | None:
        """Mean over images and seeds."""
        means = [math.fsum(values.values()) / len(values) for values in self.values(dataset, metric) if values]
        return math.fsum(means) / len(means) if means else None

    @property
    def cost(self) -> InferenceCost | None:
        """Parameters and seconds an image, of the first seed, on the target's test set if there is one."""
        for cell, evaluation in zip(self.cells, self.evaluations, strict=False):
            for costs in evaluation.costs.values():
                return costs.get(cell.measured)
        return None


@dataclass(frozen=True)
class SweepFigures:
    """The figures of all rows."""

    sweep: Ablation
    rows: tuple[RowFigures, ...]
    group: str | None = None
    """Regular expression; images whose ids have the same first group are drawn together."""

    @cached_property
    def columns(self) -> list[Column]:
        """The columns of the table, in the order of the settings."""
        return list(dict.fromkeys(column for row in self.rows for column in row.columns))

    @cached_property
    def untouched(self) -> dict[Column, float]:
        """Means of the unprocessed input, where it was measured."""
        return self._means(UNTOUCHED)

    @cached_property
    def ground_truth(self) -> dict[Column, float]:
        """Means of the ground truth, which has a value of every no-reference metric."""
        return self._means(TRUTH)

    def _means(self, name: str) -> dict[Column, float]:
        found: dict[Column, float] = {}
        for row in self.rows:
            for evaluation in row.evaluations[:1]:
                for column in self.columns:
                    mean = evaluation.mean(name, *column)
                    if mean is not None:
                        found.setdefault(column, mean)
        return found

    @property
    def variants(self) -> dict[str, str]:
        """Variant of each metric in words (`Evaluation.variants`)."""
        return {name: text for row in self.rows for e in row.evaluations for name, text in e.variants.items()}

    def higher_is_better(self, metric: str) -> bool:
        """Direction of a metric."""
        return next((e.directions[metric] for r in self.rows for e in r.evaluations if metric in e.directions), True)

    def images(self, dataset: str) -> int:
        """Number of images of a test set."""
        return max((len(e.images(dataset)) for r in self.rows for e in r.evaluations), default=0)

    @cached_property
    def to_baseline(self) -> dict[tuple[str, Column], Difference]:
        """Each row minus the unadapted student that it started from; p-values are corrected over the whole table."""
        found: dict[tuple[str, Column], Difference] = {}
        for row in self.rows:
            if row.baseline is None or (row.row.student == "baseline" and not row.row.online):
                continue
            for column in row.columns:
                theirs = row.baseline.values("student", *column)
                difference = self._difference(row.values(*column), [theirs] * len(row.cells), column)
                if difference is not None:
                    found[row.row.name, column] = difference
        return corrected(found)

    @cached_property
    def to_reference(self) -> dict[tuple[str, Column], Difference]:
        """Each row minus the sweep's reference row, seed by seed; empty without one."""
        reference = next((row for row in self.rows if row.row.name == self.sweep.reference), None)
        found: dict[tuple[str, Column], Difference] = {}
        for row in self.rows:
            if reference is None or row is reference:
                continue
            for column in row.columns:
                ours, theirs = _paired_seeds(row, reference, column)
                difference = self._difference(ours, theirs, column)
                if difference is not None:
                    found[row.row.name, column] = difference
        return corrected(found)

    def _difference(
        self, ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]], column: Column
    ) -> Difference | None:
        """The difference of values, or of their distances to the ground truth's where that has values."""
        truth = next((found for r in self.rows for e in r.evaluations if (found := e.truth(*column))), None)
        if truth is not None:
            ours, theirs = ([distances(values, truth) for values in side] for side in (ours, theirs))
        pairs = [pair for pair in zip(ours, theirs, strict=False) if pair[0] and pair[1]]
        if not pairs:
            return None
        ids = sorted(set.intersection(*(a.keys() & b.keys() for a, b in pairs)))
        if not ids:
            return None
        gaps = np.array([[a[image] - b[image] for image in ids] for a, b in pairs])
        groups = None if self.group is None else [group_of(image, self.group) for image in ids]
        low, high, p = two_way_interval(gaps, groups) or (None, None, None)
        missing = sum(len(b.keys() - a.keys()) for a, b in pairs)
        lower = truth is not None or not self.higher_is_better(column[1])
        mean = float(gaps.mean())
        return Difference(mean, low, high, len(ids), missing, lower, truth is not None, p=p, adjusted_p=p)


def group_of(image: str, pattern: str) -> str:
    """The group that an image belongs to: the first group of the pattern, or the id itself without a match."""
    found = re.search(pattern, image)
    return image if found is None else found[1] if found.re.groups else found[0]


def corrected(found: dict[tuple[str, Column], Difference]) -> dict[tuple[str, Column], Difference]:
    """Adjust all p-values of a table for their number (Holm)."""
    judged = [(key, difference.p) for key, difference in found.items() if difference.p is not None]
    for (key, _), p in zip(judged, holm([p for _, p in judged]), strict=True):
        found[key] = replace(found[key], adjusted_p=p)
    return found


def collect_figures(sweep: Ablation, cells: Sequence[Cell], group: str | None = None) -> SweepFigures:
    """Load the finished cells of a sweep.

    Args:
        sweep: the table.
        cells: the result of `make_cells`, finished or not.
        group: see `SweepFigures.group`.

    Raises:
        DataError: a finished cell whose evaluation is gone.
    """
    loaded: dict[str, Evaluation] = {}

    def evaluation(cell: Cell) -> Evaluation | None:
        if not (cell.done and cell.measures):
            return None
        if cell.folder not in loaded:
            loaded[cell.folder] = load_evaluation(cell.folder)
        return loaded[cell.folder]

    rows = []
    for row in sweep.rows:
        own = [cell for cell in cells if cell.row == row]
        done = tuple(cell for cell in own if cell.done)
        rows.append(
            RowFigures(
                row=row,
                cells=done,
                evaluations=tuple(found for cell in done if (found := evaluation(cell)) is not None),
                facts=tuple(read_facts(cell) for cell in done),
                baseline=evaluation(baseline_cell(own[0])) if own else None,
                seeds=len(own),
            )
        )
    return SweepFigures(sweep, tuple(rows), group)


def _paired_seeds(
    row: RowFigures, reference: RowFigures, column: Column
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Values of two rows, seed by seed; a row without seeds stands beside each seed of the other."""
    ours = {cell.seed: values for cell, values in zip(row.cells, row.values(*column), strict=False)}
    theirs = {cell.seed: values for cell, values in zip(reference.cells, reference.values(*column), strict=False)}
    if None in ours and None in theirs:
        return [ours[None]], [theirs[None]]
    seeds = sorted(seed for seed in {*ours, *theirs} if seed is not None)
    both = [seed for seed in seeds if (seed in ours or None in ours) and (seed in theirs or None in theirs)]
    return [ours.get(s, ours.get(None, {})) for s in both], [theirs.get(s, theirs.get(None, {})) for s in both]

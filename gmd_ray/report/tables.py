"""The tables of a page: figures of the students, costs, and the counts of the pair store."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from gmd_ray.config import Config
from gmd_ray.evaluation.differences import Difference, distances
from gmd_ray.evaluation.results import NO_TRUTH, Evaluation
from gmd_ray.evaluation.store import StoreSummary
from gmd_ray.evaluation.summaries.published import published_beside, published_note, published_rows
from gmd_ray.evaluation.summaries.verdict import style_of
from gmd_ray.evaluation.table import (
    BASELINE,
    COST_COLUMNS,
    change,
    cost_cells,
    cost_note,
    measured,
    number,
    shown_rows,
    source_loss,
    variant_notes,
    word_note,
)
from gmd_ray.report.gallery import label

REASONS_SHOWN = 20
"""Reasons for missing values that a table tells at most."""
UNKNOWN = "–"
"""The mark of the evaluation's tables for a value that is not known; a page leaves the cell empty."""

BLANK: dict[str, Any] = {"mean": "", "best": False, "change": "", "word": "", "style": ""}
"""A cell without a value."""


def metric_table(evaluation: Evaluation, dataset: str) -> dict[str, Any]:
    """The figures of one test set, with a mark for the best mean of a column and a word for each difference.

    Metrics without any value have no column; `lacking` tells why.
    """
    metrics, note = measured(evaluation, dataset), cost_note(evaluation, dataset)
    best = {metric: _best(evaluation, dataset, metric) for metric in metrics}
    rows = []
    for student in shown_rows(evaluation, dataset):
        cells = [_cell(evaluation, student, dataset, metric, best[metric]) for metric in metrics]
        costs = cost_cells(evaluation, dataset, student) if note else []
        cells += [BLANK | {"mean": text.replace(UNKNOWN, "")} for text in costs]
        rows.append({"student": student, "label": label(student), "cells": cells})
    if (published := published_beside(evaluation, dataset)) is not None:
        for row in published_rows(published):
            texts = [row.printed.get(metric, "") for metric in metrics]
            texts += [row.parameters, row.seconds] if note else []
            cells = [BLANK | {"mean": text} for text in texts]
            rows.append({"student": "", "label": f"{row.method} (published)", "cells": cells})
    failures = evaluation.failures(dataset)
    return {
        "dataset": dataset,
        "images": len(evaluation.images(dataset)),
        "columns": [(metric, "higher is better" if evaluation.directions[metric] else "lower is better")
                    for metric in metrics] + [(name, "") for name in COST_COLUMNS if note],
        "lacking": [(metric, NO_TRUTH) for metric in evaluation.lacking(dataset)],
        "notes": _notes(evaluation, dataset, metrics),
        "rows": rows,
        "failures": [(label(s), m, why, n) for s, m, why, n in failures[:REASONS_SHOWN]],
        "more_failures": max(0, len(failures) - REASONS_SHOWN),
    }  # fmt: skip


def _notes(evaluation: Evaluation, dataset: str, metrics: list[str]) -> list[str]:
    """Sentences below the table: its small figures, what each metric measures, the seconds, and published rows."""
    words, seconds = word_note(evaluation, dataset), cost_note(evaluation, dataset)
    words = words.replace(f"difference to {BASELINE}", f"difference to “{label(BASELINE)}”")
    notes = (
        [f"Small: {words}. Bold: best of the column, by distance to the ground truth where that is shown."]
        if words
        else []
    )
    notes += [f"{line}." for line in variant_notes(evaluation, metrics)]
    notes += [f"{seconds}."] if seconds else []
    published = published_beside(evaluation, dataset)
    notes += [f"{published_note(published)}."] if published is not None else []
    notes += [f"{loss}."] if dataset == "source" and (loss := source_loss(evaluation)) else []
    return notes


def _best(evaluation: Evaluation, dataset: str, metric: str) -> set[str]:
    """Return the methods with the best mean: those nearest to the ground truth's values, where they are known."""
    truth = evaluation.truth(dataset, metric)
    worth: dict[str, float] = {}
    for student in evaluation.students:
        values = evaluation.values(student, dataset, metric)
        if truth:
            gaps = distances(values, truth)
            worth |= {student: -fmean(gaps.values())} if gaps else {}
        elif values:
            worth[student] = fmean(values.values()) * (1 if evaluation.directions[metric] else -1)
    return {student for student, value in worth.items() if value == max(worth.values())}


def _cell(evaluation: Evaluation, student: str, dataset: str, metric: str, best: set[str]) -> dict[str, Any]:
    mean = evaluation.mean(student, dataset, metric)
    if mean is None:
        return BLANK
    cell = BLANK | {"mean": number(mean), "best": student in best}
    difference = None if student == BASELINE else evaluation.difference(student, dataset, metric, against=BASELINE)
    if difference is not None:
        cell |= {"change": _change(difference, mean), "word": difference.phrase, "style": style_of(difference.word)}
    return cell


def _change(difference: Difference, mean: float) -> str:
    return change(difference, mean).replace("-", "−")


def pair_counts(store: StoreSummary) -> dict[str, Any]:
    """The outcome of every input of the pair store, and the conditions of its gate."""
    accepted, rejected = len(store.accepted), len(store.rejected)
    scored = accepted + rejected
    return {
        "inputs": store.inputs,
        "accepted": accepted,
        "rejected": rejected,
        "failed": store.failed_count,
        "pass_rate": f"{100 * accepted / scored:.1f} %" if scored else "",
        "threshold": f"{'≥' if store.higher_is_better else '≤'} {store.threshold:g}",
        "fidelity": "" if store.fidelity is None else str(store.fidelity),
        "warnings": store.gate_warnings,
    }


def cost_table(cfg: Config, cost: Mapping[str, Any]) -> dict[str, Any] | None:
    """Predicted and actual cost of the pairs; what is not known is left out, None where nothing is.

    Args:
        cfg: the settings, which say whether the teacher had an accelerator.
        cost: the manifest's `cost`.
    """
    sides = {"predicted": cost.get("predicted") or {}, "actual": cost.get("actual") or {}}
    currency = sides["actual"].get("currency") or sides["predicted"].get("currency") or ""
    hours = "accelerator-hours" if cfg.teacher.pool.num_gpus else "hours of the teacher, on CPUs"
    rows = [
        (f"price, {currency}", "price", 1.0),
        (hours, "accelerator_hours", 1.0),
        ("wall time, hours", "wall_hours", 1.0),
        ("images projected", "images", 1.0),
        ("disk, GB", "disk_bytes", 1e9),
    ]
    known = [name for name, side in sides.items() if any(side.get(key) is not None for _, key, _ in rows)]
    table = [(name, [_amount(sides[side].get(key), unit) for side in known]) for name, key, unit in rows]
    table = [row for row in table if any(row[1])]
    return {"columns": known, "rows": table} if table else None


def _amount(value: float | None, unit: float) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) and unit == 1 else f"{value / unit:,.3g}"


def throughput(store: StoreSummary | None, curves: Mapping[str, list[dict[str, Any]]]) -> list[tuple[str, str]]:
    """Speeds of the stages as (what, figure); those that nobody measured are left out.

    Args:
        store: the pair store.
        curves: logged entries of each fine-tune.
    """
    rows = []
    if store is not None:
        rate, wall = store.manifest.images_per_second, store.manifest.seconds
        stages = store.manifest.document.get("seconds_by_stage") or {}
        done = len(store.scores)
        if rate:
            rows.append(("pairs made", f"{_rate(rate)} photos/s"))
        names = {"restore": "student", "project": "teacher", "score": "scorer"}
        for stage, name in names.items():
            if stages.get(stage) and done:
                rows.append((f"{name}, one photo", _seconds(stages[stage] / done)))
        if wall:
            rows.append(("last generation", _seconds(wall)))
    for name, entries in curves.items():
        rates = sorted(entry["images_per_s"] for entry in entries if entry.get("images_per_s"))
        if rates:
            rows.append((f"fine-tune, {label(name)}", f"{_rate(rates[len(rates) // 2])} crops/s"))
    return rows


def _rate(value: float) -> str:
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _seconds(value: float) -> str:
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if value < 7200 else f"{value / 3600:.3g} h"

"""The figures of an evaluation as Markdown tables."""

from __future__ import annotations

from gmd_ray.evaluation.results import NO_TRUTH, Evaluation
from gmd_ray.evaluation.summaries.published import published_beside, published_note, published_rows
from gmd_ray.evaluation.summaries.verdict import sentences
from gmd_ray.evaluation.table import (
    BASELINE,
    COST_COLUMNS,
    change,
    columns,
    cost_cells,
    cost_note,
    label,
    number,
    shown_rows,
    source_loss,
    variant_notes,
    word_note,
)


def markdown(evaluation: Evaluation) -> str:
    """The verdict and a Markdown table for each test set, followed by what is missing and the reasons."""
    lines = ["# Evaluation", ""]
    if verdict := sentences(evaluation):
        lines += [" ".join(verdict), ""]
    for dataset in evaluation.datasets:
        lines += [*_section(evaluation, dataset), ""]
    lines += [f"- {metric}: unavailable: {reason}" for metric, reason in evaluation.unavailable.items()]
    return "\n".join(lines).rstrip() + "\n"


def _section(evaluation: Evaluation, dataset: str) -> list[str]:
    """The heading, table and notes of a test set."""
    metrics, note = columns(evaluation, dataset), cost_note(evaluation, dataset)
    lines = [f"## {dataset} ({len(evaluation.images(dataset))} images)", ""]
    arrows = [f"{metric} {'↑' if evaluation.directions[metric] else '↓'}" for metric in metrics]
    heads = ["method", *arrows, *(COST_COLUMNS if note else [])]
    lines += [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name in shown_rows(evaluation, dataset):
        cells = [_cell(evaluation, name, dataset, metric) for metric in metrics]
        cells += cost_cells(evaluation, dataset, name) if note else []
        lines.append(f"| {' | '.join([label(name), *cells])} |")
    notes = []
    if (published := published_beside(evaluation, dataset)) is not None:
        for row in published_rows(published):
            cells = [row.printed.get(metric, "–") for metric in metrics]
            cells += [row.parameters or "–", row.seconds or "–"] if note else []
            lines.append(f"| {' | '.join([f'{row.method} (published)', *cells])} |")
        notes.append(published_note(published))
    notes += [f"{metric}: unavailable: {NO_TRUTH}" for metric in evaluation.lacking(dataset)]
    notes += [f"in brackets: {word_note(evaluation, dataset)}"] if word_note(evaluation, dataset) else []
    notes += [*variant_notes(evaluation, metrics), *([note] if note else [])]
    notes += [loss] if dataset == "source" and (loss := source_loss(evaluation)) else []
    for name, metric, reason, n in evaluation.failures(dataset):
        notes.append(f"{label(name)}, {metric}: no value on {n} images: {reason}")
    return [*lines, "", *(f"- {text}" for text in notes)]


def _cell(evaluation: Evaluation, student: str, dataset: str, metric: str) -> str:
    mean = evaluation.mean(student, dataset, metric)
    if mean is None:
        return "–"
    difference = evaluation.difference(student, dataset, metric, against=BASELINE)
    if student == BASELINE or difference is None:
        return number(mean)
    word = "" if difference.low is None else f" {difference.phrase}"
    return f"{number(mean)} ({'distance ' if difference.to_truth else ''}{change(difference, mean)}{word})"

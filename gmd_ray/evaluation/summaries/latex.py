"""The figures of an evaluation as LaTeX tables of the package booktabs."""

from __future__ import annotations

import re

from gmd_ray.evaluation.differences import Difference
from gmd_ray.evaluation.results import UNTOUCHED, Evaluation
from gmd_ray.evaluation.summaries.published import published_beside, published_note, published_rows
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
    variant_notes,
    word_note,
)

_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
}


def latex(evaluation: Evaluation) -> str:
    r"""One `tabular` for each test set, with its notes as comments; needs `\usepackage{booktabs}`.

    Below each mean stands the difference to the baseline with its 95 % interval, in small print.
    """
    lines = ["% Needs \\usepackage{booktabs}."]
    for dataset in evaluation.datasets:
        lines += ["", *_table(evaluation, dataset)]
    return "\n".join(lines) + "\n"


def _table(evaluation: Evaluation, dataset: str) -> list[str]:
    metrics, note = columns(evaluation, dataset), cost_note(evaluation, dataset)
    costs = COST_COLUMNS if note else []
    heads = [f"{metric} {'↑' if evaluation.directions[metric] else '↓'}" for metric in metrics]
    notes = [f"{dataset}: {len(evaluation.images(dataset))} images", *variant_notes(evaluation, metrics)]
    notes += [word_note(evaluation, dataset), *([note] if note else [])]
    lines = [f"% {text}" for text in notes if text]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(metrics + costs)}}}", r"\toprule", _line(["method", *heads, *costs])]
    lines.append(r"\midrule")
    for name in shown_rows(evaluation, dataset):
        means = [evaluation.mean(name, dataset, metric) for metric in metrics]
        cells = ["–" if mean is None else number(mean) for mean in means]
        lines.append(_line([label(name), *cells, *(cost_cells(evaluation, dataset, name) if note else [])]))
        below = []
        for metric, mean in zip(metrics, means, strict=True):
            difference = evaluation.difference(name, dataset, metric) if name != BASELINE else None
            below.append("" if difference is None or mean is None else _judged(difference, mean))
        if any(below):
            small = [rf"{{\scriptsize {_minus(escape(text))}}}" if text else "" for text in below]
            lines.append(" & ".join(["", *small, *("" for _ in costs)]) + r" \\")
        if name == UNTOUCHED:
            lines.append(r"\midrule")
    if (published := published_beside(evaluation, dataset)) is not None:
        lines += [r"\midrule", f"% {published_note(published)}"]
        for row in published_rows(published):
            cells = [row.printed.get(metric, "–") for metric in metrics]
            cost = [row.parameters or "–", row.seconds or "–"] if note else []
            lines.append(_line([f"{row.method} (published)", *cells, *cost]))
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _judged(difference: Difference, mean: float) -> str:
    """The difference and its word, as in the Markdown table."""
    word = "" if difference.low is None else f" {difference.phrase}"
    return f"{'distance ' if difference.to_truth else ''}{change(difference, mean)}{word}"


def _line(cells: list[str]) -> str:
    return " & ".join(escape(cell) for cell in cells) + r" \\"


def _minus(text: str) -> str:
    """The signs of numbers as minus signs, not as hyphens."""
    return re.sub(r"-(?=\d)", "$-$", text)


def escape(text: str) -> str:
    """The text with every character that LaTeX reads as a command written out."""
    return "".join(_SPECIAL.get(character, character) for character in text)

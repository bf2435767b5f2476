"""The table of a sweep as Markdown, LaTeX, JSON, and Parquet with a row for each seed, image and metric."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gmd_ray.ablation.figures import Column, RowFigures, SweepFigures
from gmd_ray.evaluation import Difference
from gmd_ray.evaluation.results import TRUTH, UNTOUCHED
from gmd_ray.evaluation.summaries.latex import escape
from gmd_ray.evaluation.summaries.published import published_note, published_rows
from gmd_ray.evaluation.table import change, label, number
from gmd_ray.storage import replacing

SCHEMA = pa.schema(
    [
        ("row", pa.string()),
        ("seed", pa.int64()),
        ("dataset", pa.string()),
        ("id", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)
"""Schema of `values.parquet`; `seed` is null for a row without training."""


def save_tables(figures: SweepFigures, folder: str) -> str:
    """Write `table.md`, `table.tex`, `table.json` and `values.parquet`; returns the Markdown."""
    text = markdown_table(figures)
    documents = {
        "table.md": text,
        "table.tex": latex_table(figures),
        "table.json": json.dumps(json_table(figures), indent=2),
    }
    for name, content in documents.items():
        with replacing(Path(folder, name)) as draft:
            draft.write_text(content, encoding="utf-8")
    with replacing(Path(folder, "values.parquet")) as draft:
        pq.write_table(pa.Table.from_pylist(_values(figures), schema=SCHEMA), draft)
    return text


def markdown_table(figures: SweepFigures) -> str:
    """The table, the comparison with the reference row, and the notes without which neither can be read."""
    sweep = figures.sweep
    lines = [f"# {sweep.title}", ""]
    lines += _markdown(_body(figures))
    if figures.to_reference:
        lines += ["", f"Each row minus `{sweep.reference}`, seed by seed:", "", *_markdown(_reference_body(figures))]
    if sweep.published is not None:
        note = published_note(sweep.published)
        lines += ["", *_markdown(_published_body(sweep.published)), "", f"{note[0].upper()}{note[1:]}."]
    return "\n".join([*lines, "", *notes(figures)]) + "\n"


def _body(figures: SweepFigures) -> list[list[str]]:
    """The table: heads, the untouched photo, every row, and the ground truth where it has values."""
    more = _more_heads(figures)
    blank = [""] * len(more)
    lines = [["method", *(_head(figures, column) for column in figures.columns), *more]]
    if figures.untouched:
        lines.append([label(UNTOUCHED), *(_mean(figures.untouched.get(column)) for column in figures.columns), *blank])
    for row in figures.rows:
        cells = [_cell(row, column, figures.to_baseline.get((row.row.name, column))) for column in figures.columns]
        lines.append([row.row.name, *cells, *_more_cells(figures, row)])
    if figures.ground_truth:
        lines.append([label(TRUTH), *(_mean(figures.ground_truth.get(column)) for column in figures.columns), *blank])
    return lines


def _reference_body(figures: SweepFigures) -> list[list[str]]:
    """The comparison with the reference row: heads, and every other row."""
    lines = [["method", *(_head(figures, column) for column in figures.columns)]]
    for row in figures.rows:
        found = [figures.to_reference.get((row.row.name, column)) for column in figures.columns]
        if any(found):
            cells = [_verdict(row, c, d) for c, d in zip(figures.columns, found, strict=True)]
            lines.append([row.row.name, *cells])
    return lines


def _published_body(table: str) -> list[list[str]]:
    """The paper's rows, as a table of their own with heads: its metrics and images are others than ours."""
    rows = published_rows(table)
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.values))
    costs = [name for name in ("parameters", "seconds") if any(getattr(row, name) for row in rows)]
    heads = [f"{published_note(table).partition(':')[0]}", *(metric.upper() for metric in metrics), *costs]
    lines = [heads]
    for row in rows:
        cells = [row.printed.get(metric, "") for metric in metrics]
        lines.append([f"{row.method} (published)", *cells, *(getattr(row, name) for name in costs)])
    return lines


def notes(figures: SweepFigures) -> list[str]:
    """Lines below the table: the intervals, what is missing, and what was left out."""
    lines = []
    if figures.columns:
        sets = ", ".join(f"{figures.images(d)} {d} images" for d in dict.fromkeys(d for d, _ in figures.columns))
        together = "" if figures.group is None else "; images of one group are drawn together"
        seeds = max((len(row.cells) for row in figures.rows), default=0)
        lines.append(
            f"{sets}; up to {seeds} training seeds. In brackets: minus the unadapted student, with the 95 % bootstrap "
            f"interval over images and seeds{together}, and what it says after Holm's correction over the table. "
            "↑ higher is better, ↓ lower is better."
        )
    if figures.ground_truth:
        lines.append("A no-reference metric is judged by its distance to the ground truth's value: closer is better.")
    metrics = dict.fromkeys(metric for _, metric in figures.columns)
    lines += [f"{name.upper()}: {figures.variants[name]}." for name in metrics if name in figures.variants]
    short = [f"{row.row.name} ({len(row.cells)} of {row.seeds})" for row in figures.rows if len(row.cells) < row.seeds]
    if short:
        lines.append(f"Not finished: {', '.join(short)}.")
    lines += [f"Left out: {name}, which needs {what}." for name, what in figures.sweep.left_out.items()]
    return [f"- {line}" for line in lines]


def latex_table(figures: SweepFigures) -> str:
    """The same tables for LaTeX with booktabs; notes are comments."""
    lines = [*(f"% {note.removeprefix('- ')}" for note in notes(figures)), *_tabular(_body(figures))]
    if figures.to_reference:
        lines += ["", f"% Each row minus {figures.sweep.reference}, seed by seed:"]
        lines += _tabular(_reference_body(figures))
    if figures.sweep.published is not None:
        lines += [
            "",
            f"% {published_note(figures.sweep.published)}",
            *_tabular(_published_body(figures.sweep.published)),
        ]
    return "\n".join(lines) + "\n"


def _tabular(table: Sequence[Sequence[str]]) -> list[str]:
    heads, *body = [" & ".join(map(escape, cells)) + r" \\" for cells in table]
    begin = rf"\begin{{tabular}}{{l{'c' * (len(table[0]) - 1)}}}"
    return [begin, r"\toprule", heads, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]


def json_table(figures: SweepFigures) -> dict[str, Any]:
    """The table as a JSON document."""
    return {
        "name": figures.sweep.name,
        "title": figures.sweep.title,
        "published": _published_document(figures.sweep.published),
        "images": {dataset: figures.images(dataset) for dataset, _ in figures.columns},
        "untouched": {"/".join(column): mean for column, mean in figures.untouched.items()},
        "ground_truth": {"/".join(column): mean for column, mean in figures.ground_truth.items()},
        "variants": figures.variants,
        "rows": [
            {
                "name": row.row.name,
                "settings": list(row.row.overrides),
                "seeds": [cell.seed for cell in row.cells],
                "seeds_planned": row.seeds,
                "means": {"/".join(column): row.mean(*column) for column in row.columns},
                "means_by_seed": {
                    "/".join(c): [statistics.fmean(v.values()) if v else None for v in row.values(*c)]
                    for c in row.columns
                },
                "minus_unadapted": _documents(figures.to_baseline, row),
                "minus_reference": _documents(figures.to_reference, row),
                "pairs": row.facts[0].get("pairs") if row.facts else None,
                "cost": None if row.cost is None else asdict(row.cost),
            }
            for row in figures.rows
        ],
        "reference": figures.sweep.reference,
        "left_out": dict(figures.sweep.left_out),
    }


def _published_document(table: str | None) -> dict[str, Any] | None:
    return None if table is None else {"table": table, "rows": [asdict(row) for row in published_rows(table)]}


def _documents(found: dict[tuple[str, Column], Difference], row: RowFigures) -> dict[str, Any]:
    return {
        "/".join(column): asdict(difference) | {"word": difference.word}
        for (name, column), difference in found.items()
        if name == row.row.name
    }


def _values(figures: SweepFigures) -> list[dict[str, Any]]:
    return [
        {"row": row.row.name, "seed": cell.seed, "dataset": dataset, "metric": metric, "id": image, "value": value}
        for row in figures.rows
        for cell, evaluation in zip(row.cells, row.evaluations, strict=False)
        for dataset, metric in row.columns
        for image, value in sorted(evaluation.values(cell.measured, dataset, metric).items())
    ]


def _markdown(table: Sequence[Sequence[str]]) -> list[str]:
    heads, *body = table
    return [_line(heads), _line(["---"] * len(heads)), *map(_line, body)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(figures: SweepFigures, column: Column) -> str:
    return f"{column[0]} {column[1].upper()} {'↑' if figures.higher_is_better(column[1]) else '↓'}"


def _mean(value: float | None) -> str:
    return "" if value is None else number(value)


def _cell(row: RowFigures, column: Column, difference: Difference | None) -> str:
    mean = row.mean(*column)
    if mean is None or difference is None:
        return _mean(mean)
    what = "distance " if difference.to_truth else ""
    return f"{number(mean)} ({what}{change(difference, mean)}, {difference.phrase})"


def _verdict(row: RowFigures, column: Column, difference: Difference | None) -> str:
    mean = row.mean(*column)
    return "" if difference is None or mean is None else f"{change(difference, mean)} {difference.phrase}"


def _more_heads(figures: SweepFigures) -> list[str]:
    heads = []
    if _have_pairs(figures):
        heads += ["accepted", "threshold"]
    if _have_truth(figures):
        heads += ["restored to truth", "pseudo-target to truth", "to restored"]
    if figures.sweep.latency:
        heads += ["parameters", "s/image"]
    return heads


def _more_cells(figures: SweepFigures, row: RowFigures) -> list[str]:
    pairs = row.facts[0].get("pairs") if row.facts else None
    cells = []
    if _have_pairs(figures):
        if pairs:
            share = 100 * pairs["accepted"] / max(1, pairs["generated"])
            cells += [f"{pairs['accepted']:,} of {pairs['generated']:,} ({share:.1f} %)", f"{pairs['threshold']:g}"]
        else:
            cells += ["", ""]
    if _have_truth(figures):
        cells += [_mean((pairs or {}).get(name)) for name in ("restored", "pseudo_target", "fidelity")]
    if figures.sweep.latency:
        cost = row.cost
        parameters = None if cost is None else cost.parameters
        cells += ["" if parameters is None else f"{parameters:,}", _mean(None if cost is None else cost.seconds)]
    return cells


def _have_pairs(figures: SweepFigures) -> bool:
    return any(facts.get("pairs") for row in figures.rows for facts in row.facts[:1])


def _have_truth(figures: SweepFigures) -> bool:
    return any("pseudo_target" in (facts.get("pairs") or {}) for row in figures.rows for facts in row.facts[:1])

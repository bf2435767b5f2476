"""The paper's published figures, to stand beside those of a run; `published.csv` names the table of each."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from gmd_ray.errors import ConfigError, nearest
from gmd_ray.evaluation.results import Evaluation

COSTS = ("parameters", "seconds")


@dataclass(frozen=True)
class PublishedRow:
    """One row of a table of the paper."""

    method: str
    values: dict[str, float] = field(default_factory=dict)
    """By metric, in our names."""
    printed: dict[str, str] = field(default_factory=dict)
    """The same with the digits that the paper gives."""
    parameters: str = ""
    """As printed, such as `1.3B+12B`."""
    seconds: str = ""
    """Latency in seconds as printed, on hardware that the paper does not name."""


def published_beside(evaluation: Evaluation, dataset: str) -> str | None:
    """The table of the paper to show with a test set: that of the settings with the target, none with the source."""
    return evaluation.published if dataset == "target" else None


def published_rows(table: str) -> list[PublishedRow]:
    """The rows of a table, in its order.

    Args:
        table: number and data set, such as `3/REDS` (`evaluation.published`).

    Raises:
        ConfigError: no such table.
    """
    known = _tables()
    if table not in known:
        raise ConfigError(f"evaluation.published={table}: {nearest(table, known)}")
    return known[table]


def published_note(table: str) -> str:
    """The sentence that stands below the rows of a table."""
    number, _, dataset = table.partition("/")
    return (
        f"published: printed in Table {number} ({dataset}) of the paper, measured by its authors on their own models, "
        "images and machines; no interval is known, and none of it was measured here"
    )


@cache
def _tables() -> dict[str, list[PublishedRow]]:
    found: dict[str, dict[str, dict[str, str]]] = {}
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            table = found.setdefault(f"{row['table']}/{row['dataset']}", {})
            table.setdefault(row["method"], {})[row["metric"]] = row["value"]
    return {
        table: [
            PublishedRow(
                method,
                {metric: float(text) for metric, text in cells.items() if metric not in COSTS},
                {metric: text for metric, text in cells.items() if metric not in COSTS},
                cells.get("parameters", ""),
                cells.get("seconds", ""),
            )
            for method, cells in methods.items()
        ]
        for table, methods in found.items()
    }

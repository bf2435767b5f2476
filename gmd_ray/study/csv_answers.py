"""The CSV files that raters of a page without a server send back. Their content is a stranger's: nothing is trusted."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gmd_ray.errors import DataError
from gmd_ray.study.answers import LONGEST_RATER, SLOWEST_S, Answer
from gmd_ray.study.folder import CHOICES, Study

COLUMNS = ("study", "rater", "name", "pair", "choice", "seconds", "answered_at")
LARGEST = 20_000_000
"""Bytes of the largest file that is read."""
_RATER = re.compile(r"[0-9a-f]{16}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")


@dataclass
class CsvAnswers:
    """The answers of some files, and an account of the rows that are none."""

    answers: list[Answer] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> rows."""


def read_csv_answers(study: Study, paths: Iterable[str | Path]) -> CsvAnswers:
    """Read files of answers.

    A rater is the random number that the page drew, so two of one name stay two. Where one rater answered a pair more
    than once, the latest answer counts, so a file may be sent again.

    Raises:
        DataError: a file cannot be read, or lacks a column.
    """
    found = CsvAnswers()
    latest: dict[tuple[str, str], Answer] = {}
    pairs = {pair.id for pair in study.pairs}
    for path in paths:
        for row in _rows(Path(path)):
            reason = _fault(row, study.id, pairs)
            if reason:
                found.left_out[reason] += 1
                continue
            seconds = min(max(float(row["seconds"]), 0.0), SLOWEST_S)
            name = row["name"][:LONGEST_RATER]
            answer = Answer(f"file {row['rater']}", name, row["pair"], row["choice"], seconds, row["answered_at"])
            key = answer.rater, answer.pair
            if key in latest:
                found.left_out["answers to a pair that the same rater answered twice"] += 1
            if key not in latest or latest[key].at < answer.at:
                latest[key] = answer
    found.answers = sorted(latest.values(), key=lambda answer: (answer.rater, answer.pair))
    return found


def _rows(path: Path) -> Iterable[Mapping[str, str]]:
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path}: larger than {LARGEST:,} bytes: not the answers of one rater")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text; give the CSV file that the page saved") from error
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        lacking = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if lacking:
            raise DataError(f"{path}: no column {lacking[0]!r}; give the CSV file that the page saved, unchanged")
        return list(reader)
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV file ({error})") from error


def _fault(row: Mapping[str, str], study: str, pairs: set[str]) -> str:
    """The reason why a row is no answer to this study; empty if it is one."""
    if row["study"] != study:
        return "rows of another study"
    if row["pair"] not in pairs:
        return "rows with a pair that this study does not have"
    if row["choice"] not in CHOICES:
        return "rows with a choice that does not exist"
    if not _RATER.fullmatch(row["rater"]) or not _TIME.fullmatch(row["answered_at"]):
        return "rows without a rater or a time"
    try:
        return "" if math.isfinite(float(row["seconds"])) else "rows without a rater or a time"
    except ValueError:
        return "rows without a rater or a time"

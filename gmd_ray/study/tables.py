"""The result of a study as Markdown and JSON. Names of raters and methods are strangers' text, and are escaped."""

from __future__ import annotations

import html
import json
from dataclasses import asdict
from typing import Any

from gmd_ray.study.result import MethodComparison, RaterRecord, StudyResult
from gmd_ray.study.statistics import MIN_RATERS, Interval, WinRate
from gmd_ray.text import printable

_NOTE = (
    "Win rates are those of the first method. The first interval (Wilson) takes answers as independent; the second, "
    "a bootstrap over whole raters, does not, and the sentences above go by it. Both are 95 %. Fewer than "
    f"{MIN_RATERS} raters get no second interval."
)
_HEADS = (
    *("first", "second", "raters", "photos", "wins", "ties", "losses"),
    *("win rate, ties excluded", "win rate, ties as half"),
)
_SEVERAL = (
    "The sentences hold after Holm's correction for the number of comparisons. The intervals are not corrected: one "
    "may leave 50 % out where no preference is seen."
)


def result_markdown(result: StudyResult) -> str:
    """The result for people, as Markdown."""
    kept = [rater for rater in result.raters if not rater.excluded]
    excluded = len(result.raters) - len(kept)
    lines = [f"# {_cell(result.title)}", ""]
    lines += [f"- {_cell(comparison.verdict)}" for comparison in result.comparisons]
    lines += [
        "",
        f"{len(result.raters)} raters, {excluded} excluded. {result.rule}{_unchecked(result)}",
        "",
        f"| {' | '.join(_HEADS)} |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
        *map(_comparison_row, result.comparisons),
        "",
        _NOTE + (f" {_SEVERAL}" if len(result.comparisons) > 1 else ""),
        "",
        *_agreement_lines(result),
        "",
        "| rater | answered | checks failed | contradictions | agreement with the others | median time | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
        *map(_rater_row, result.raters),
    ]
    if result.left_out:
        lines += ["", "Left out of the CSV files:", ""]
        lines += [f"- {count} {reason}" for reason, count in sorted(result.left_out.items())]
    return "\n".join(lines) + "\n"


def result_json(result: StudyResult) -> str:
    """The result for programs; rates and intervals lie in [0, 1]."""
    document: dict[str, Any] = {**asdict(result), "rule": result.rule, "level": 0.95}
    return json.dumps(document, indent=2) + "\n"


def _comparison_row(comparison: MethodComparison) -> str:
    cells = [
        _cell(comparison.first),
        _cell(comparison.second),
        *map(str, (comparison.raters, comparison.photos, comparison.wins, comparison.ties, comparison.losses)),
        _rate(comparison.without_ties),
        _rate(comparison.ties_as_half),
    ]
    return f"| {' | '.join(cells)} |"


def _agreement_lines(result: StudyResult) -> list[str]:
    left, sided = result.chose_a
    lines = []
    if result.alpha is not None:
        lines.append(f"Agreement of the raters, Krippendorff's alpha: {result.alpha:.2f} (1: full, 0: chance).")
    if sided:
        lines.append(f"A, the left picture, got {100 * left / sided:.0f} % of the answers that are no ties.")
    return lines


def _rater_row(rater: RaterRecord) -> str:
    agreement = f"{100 * rater.agreeing / rater.compared:.0f} % of {rater.compared}" if rater.compared else ""
    cells = [
        _cell(rater.name),
        str(rater.answered),
        f"{rater.checks_failed} of {rater.checks}",
        f"{rater.contradictions} of {rater.repeats}",
        agreement,
        f"{rater.seconds:.1f} s",
        "excluded" if rater.excluded else "no check answered" if rater.unchecked else "",
    ]
    return f"| {' | '.join(cells)} |"


def _unchecked(result: StudyResult) -> str:
    """A sentence that names the raters who count without having answered an attention check; empty without any."""
    names = [_cell(rater.name) for rater in result.raters if rater.unchecked]
    if not names:
        return ""
    return (
        f" Counted without an answer to any such pair, so that nothing shows whether they looked: {', '.join(names)}."
    )


def _rate(rate: WinRate | None) -> str:
    if rate is None:
        return ""
    clustered = "" if rate.clustered is None else f"; {_span(rate.clustered)}"
    return f"{100 * rate.rate:.1f} % ({_span(rate.wilson)}{clustered})"


def _span(interval: Interval) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _cell(text: str) -> str:
    """Text of a stranger, as a cell of a table in which it forms no markup."""
    plain = html.escape(printable(" ".join(text.split())), quote=False)
    return "".join(f"\\{sign}" if sign in "\\|*_`[]#!" else sign for sign in plain)

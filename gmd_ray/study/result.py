"""The result of a study: wins, ties and losses of every two methods, and how far each rater can be relied on."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gmd_ray.errors import DataError
from gmd_ray.study.answers import Answer
from gmd_ray.study.folder import COMPARISON, DEGRADED, REPEATED, Study, StudyKey
from gmd_ray.study.statistics import (
    LEVEL,
    MIN_RATERS,
    Tally,
    WinRate,
    agreement_with_others,
    krippendorff_alpha,
    ties_as_half,
    without_ties,
)

_OPPOSITE = {"left": "right", "right": "left", "tie": "tie"}


@dataclass(frozen=True)
class RaterRecord:
    """One rater's answers, counted."""

    id: str
    name: str
    answered: int
    """Pairs answered, attention checks included."""
    checks_failed: int
    """Pairs with a degraded copy on which the rater did not choose the other picture; a tie counts as a failure."""
    checks: int
    """Pairs with a degraded copy that were answered."""
    contradictions: int
    """Repeated comparisons on which the rater preferred one picture once and the other the other time."""
    repeats: int
    """Repeated comparisons that were answered both times."""
    agreeing: int
    """Comparisons on which the rater chose what most of the others chose; see `agreement_with_others`."""
    compared: int
    """Comparisons that `agreeing` is counted over."""
    seconds: float
    """Median time of an answer."""
    excluded: bool
    unchecked: bool = False
    """True for a rater who is counted though no answer shows that they looked: the study has attention checks, and this
    rater answered none."""


@dataclass(frozen=True)
class MethodComparison:
    """Two methods in the eyes of the raters who were not excluded."""

    first: str
    second: str
    raters: int
    photos: int
    wins: int
    """Answers for the first."""
    ties: int
    losses: int
    """Answers for the second."""
    without_ties: WinRate | None
    """Win rate of the first; None where there are ties alone."""
    ties_as_half: WinRate | None
    adjusted_p: float | None
    """`ties_as_half.p` after Holm's correction for all comparisons of the study; None where it is."""
    verdict: str
    """A sentence; see `_verdict`."""


@dataclass(frozen=True)
class StudyResult:
    """All figures of a study."""

    study: str
    title: str
    comparisons: tuple[MethodComparison, ...]
    raters: tuple[RaterRecord, ...]
    alpha: float | None
    """Krippendorff's alpha of the comparisons, among the raters who were not excluded."""
    chose_a: tuple[int, int]
    """Comparisons without ties: answers for the left picture, and all of them; sides are balanced, so half is fair."""
    allowed_failures: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Reason -> rows of CSV files that are no answers."""

    @property
    def rule(self) -> str:
        """The rule by which raters were excluded, in one sentence."""
        allowed = {0: "any", 1: "more than one"}.get(self.allowed_failures, f"more than {self.allowed_failures}")
        return f"A rater who failed {allowed} of the pairs with an obviously degraded copy is excluded."


def study_result(
    study: Study,
    key: StudyKey,
    answers: Iterable[Answer],
    *,
    allowed_failures: int = 0,
    left_out: Mapping[str, int] | None = None,
    seed: int = 0,
) -> StudyResult:
    """Count the answers.

    Repeated pairs check raters only, so that no comparison counts twice.

    Args:
        study: its pairs.
        key: their methods.
        answers: at most one for each rater and pair.
        allowed_failures: failed attention checks that do not exclude a rater.
        left_out: rows that were no answers, for the record.
        seed: of the bootstrap.

    Raises:
        DataError: there are no answers.
    """
    by_rater: dict[str, dict[str, Answer]] = {}
    for answer in answers:
        by_rater.setdefault(answer.rater, {})[answer.pair] = answer
    if not by_rater:
        raise DataError(f"{study.folder}: no answers yet; give the CSV files of raters, or wait for those with links")
    records = {rater: _record(rater, given, key, allowed_failures) for rater, given in sorted(by_rater.items())}
    kept = {rater: given for rater, given in by_rater.items() if not records[rater].excluded}
    compared = {pair for pair, facts in key.pairs.items() if facts.kind == COMPARISON}
    choices = {
        rater: {pair: answer.choice for pair, answer in given.items() if pair in compared}
        for rater, given in kept.items()
    }
    agreement = agreement_with_others(choices)
    raters = [_with_agreement(record, agreement.get(rater, (0, 0))) for rater, record in records.items()]
    units: dict[str, list[str]] = {}
    for given in choices.values():
        for pair, choice in given.items():
            units.setdefault(pair, []).append(choice)
    sided = [choice for given in units.values() for choice in given if choice != "tie"]
    methods = itertools.combinations(key.methods, 2)
    comparisons = [_comparison(first, second, choices, key, seed) for first, second in methods]
    return StudyResult(
        study=study.id,
        title=study.title,
        comparisons=tuple(_judged(comparisons)),
        raters=tuple(raters),
        alpha=krippendorff_alpha(units.values()),
        chose_a=(sided.count("left"), len(sided)),
        allowed_failures=allowed_failures,
        left_out=dict(left_out or {}),
    )


def _record(rater: str, given: Mapping[str, Answer], key: StudyKey, allowed: int) -> RaterRecord:
    failed = checks = contradictions = repeats = 0
    for pair, answer in given.items():
        facts = key.pairs[pair]
        if facts.kind == DEGRADED:
            checks += 1
            better = "right" if facts.left == DEGRADED else "left"
            failed += answer.choice != better
        elif facts.kind == REPEATED and facts.of in given:
            repeats += 1
            before = given[facts.of].choice
            contradictions += answer.choice == before != "tie"  # the sides are swapped
    some = next(iter(given.values()))
    seconds = statistics.median(answer.seconds for answer in given.values())
    there_are_checks = any(facts.kind == DEGRADED for facts in key.pairs.values())
    return RaterRecord(
        id=rater,
        name=some.name,
        answered=len(given),
        checks_failed=failed,
        checks=checks,
        contradictions=contradictions,
        repeats=repeats,
        agreeing=0,
        compared=0,
        seconds=round(seconds, 2),
        excluded=failed > allowed,
        unchecked=there_are_checks and not checks,
    )


def _with_agreement(record: RaterRecord, agreement: tuple[int, int]) -> RaterRecord:
    facts = {**vars(record), "agreeing": agreement[0], "compared": agreement[1]}
    return RaterRecord(**facts)


def _comparison(
    first: str, second: str, choices: Mapping[str, Mapping[str, str]], key: StudyKey, seed: int
) -> MethodComparison:
    tallies: list[Tally] = []
    photos = set()
    for given in choices.values():
        counts = [0, 0, 0]
        for pair, choice in given.items():
            facts = key.pairs[pair]
            if {facts.left, facts.right} != {first, second}:
                continue
            seen = choice if facts.left == first else _OPPOSITE[choice]
            counts[("left", "tie", "right").index(seen)] += 1
            photos.add(facts.photo)
        if sum(counts):
            tallies.append((counts[0], counts[1], counts[2]))
    wins, ties, losses = (sum(tally[i] for tally in tallies) for i in range(3))
    half = ties_as_half(tallies, seed)
    return MethodComparison(
        first=first,
        second=second,
        raters=len(tallies),
        photos=len(photos),
        wins=wins,
        ties=ties,
        losses=losses,
        without_ties=without_ties(tallies, seed),
        ties_as_half=half,
        adjusted_p=None,
        verdict="",
    )


def _judged(comparisons: Sequence[MethodComparison]) -> list[MethodComparison]:
    """The comparisons with their verdicts, which hold after Holm's correction for their number."""
    from gmd_ray.evaluation.statistics import holm

    known = [each.ties_as_half.p for each in comparisons if each.ties_as_half and each.ties_as_half.p is not None]
    adjusted = iter(holm(known))
    judged = []
    for each in comparisons:
        p = None if each.ties_as_half is None or each.ties_as_half.p is None else next(adjusted)
        judged.append(replace(each, adjusted_p=p, verdict=_verdict(each, p)))
    return judged


def _verdict(comparison: MethodComparison, p: float | None) -> str:
    """One sentence, by the win rate with ties as half and its adjusted p-value."""
    first, second, half = comparison.first, comparison.second, comparison.ties_as_half
    if half is None:
        return f"Nobody compared {first} with {second}."
    if p is None:
        who = "1 rater" if comparison.raters == 1 else f"{comparison.raters} raters"
        return f"{who} compared {first} with {second}: too few raters to judge, which takes {MIN_RATERS}."
    if p >= 1 - LEVEL:
        return f"No preference seen between {first} and {second}."
    return f"Raters prefer {first} to {second}." if half.rate > 0.5 else f"Raters prefer {second} to {first}."

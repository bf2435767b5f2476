"""Figures of paired preferences: win rates with their intervals, and the agreement of raters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000
MIN_RATERS = 6
"""Fewest raters that get an interval over raters: with five, even if all agree, a sign test has a p of 0.0625."""

Interval = tuple[float, float]
Tally = tuple[int, int, int]
"""Wins of the first method, ties, wins of the second."""


@dataclass(frozen=True)
class WinRate:
    """The share of the first method, in [0, 1], with 95 % intervals."""

    rate: float
    wilson: Interval
    """Wilson's score interval, which takes every answer as independent of the others."""
    clustered: Interval | None
    """A bootstrap that draws whole raters, since the answers of one rater are alike, widened for their number; None for
    fewer than `MIN_RATERS` raters."""
    p: float | None
    """Two-sided p-value of a rate of one half: twice the share of these samples on its other side, or at it."""


def without_ties(tallies: Sequence[Tally], seed: int = 0) -> WinRate | None:
    """The share of wins among the answers that are no ties; None where all are.

    Args:
        tallies: one for each rater.
        seed: of the bootstrap.
    """
    from gmd_ray.evaluation.statistics import wilson

    wins, _, losses = _sums(tallies)
    if wins + losses == 0:
        return None
    clustered = _clustered(tallies, np.array([1, 0, 0]), np.array([1, 0, 1]), seed)
    return WinRate(wins / (wins + losses), wilson(wins, wins + losses), *clustered)


def ties_as_half(tallies: Sequence[Tally], seed: int = 0) -> WinRate | None:
    """The share of wins where a tie counts as half a win for both; None where there are no answers."""
    from gmd_ray.evaluation.statistics import wilson

    wins, ties, losses = _sums(tallies)
    count = wins + ties + losses
    if count == 0:
        return None
    clustered = _clustered(tallies, np.array([1, 0.5, 0]), np.array([1, 1, 1]), seed)
    return WinRate((wins + ties / 2) / count, wilson(wins + ties / 2, count), *clustered)


def _sums(tallies: Sequence[Tally]) -> Tally:
    wins, ties, losses = (sum(tally[i] for tally in tallies) for i in range(3))
    return wins, ties, losses


def _clustered(
    tallies: Sequence[Tally], gains: np.ndarray, counted: np.ndarray, seed: int
) -> tuple[Interval | None, float | None]:
    """Interval and p-value of sum(gains) / sum(counted) over samples of raters, drawn with replacement.

    Raters of whose answers none counts are left out. The plain samples of few raters spread too little, so that their
    deviations are widened; the interval is then the central part of them, and leaves one half out if p < 1 - LEVEL.
    """
    from gmd_ray.evaluation.statistics import widening

    table = np.array(tallies, np.float64).reshape(-1, 3)
    table = table[table @ counted > 0]
    raters = len(table)
    if raters < MIN_RATERS:
        return None, None
    gained, of = table @ gains, table @ counted
    drawn = np.random.default_rng(seed).multinomial(raters, np.full(raters, 1 / raters), size=RESAMPLES)
    rate = gained.sum() / of.sum()
    shares = np.sort(rate + widening(raters) * ((drawn @ gained) / (drawn @ of) - rate))
    cut = math.ceil(RESAMPLES * (1 - LEVEL) / 2) - 1
    low, high = np.clip((shares[cut], shares[-1 - cut]), 0, 1)
    sides = float(np.mean(shares <= 0.5)), float(np.mean(shares >= 0.5))
    # Not below that of a sign test of raters who all agree, which Holm's correction may lift over 0.05.
    least = max(1 / RESAMPLES, 0.5**raters)
    return (float(low), float(high)), min(1.0, 2 * max(min(sides), least))


def krippendorff_alpha(units: Iterable[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for nominal data: 1 for full agreement, 0 for that of chance.

    Args:
        units: for each pair, the choices of the raters who answered it; those with fewer than two count for nothing.

    Returns:
        None where nothing can be compared, or all choices are the same.
    """
    # Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: the matrix of coincidences.
    coincidences: Counter[tuple[str, str]] = Counter()
    for choices in units:
        if len(choices) < 2:
            continue
        counts = Counter(choices)
        for one, n in counts.items():
            for other, m in counts.items():
                coincidences[one, other] += n * (m - (one == other)) / (len(choices) - 1)  # type: ignore[assignment]
    totals: Counter[str] = Counter()
    for (one, _), weight in coincidences.items():
        totals[one] += weight
    everything = sum(totals.values())
    expected = everything**2 - sum(total**2 for total in totals.values())
    if expected == 0:
        return None
    observed = sum(weight for (one, other), weight in coincidences.items() if one != other)
    return 1 - (everything - 1) * observed / expected


def agreement_with_others(choices: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[int, int]]:
    """Count for each rater the pairs on which they chose what most of the others chose.

    Args:
        choices: rater -> pair -> choice.

    Returns:
        rater -> (agreeing, counted). Pairs on which the others have no single most frequent choice are not counted.
    """
    votes: dict[str, Counter[str]] = {}
    for answers in choices.values():
        for pair, choice in answers.items():
            votes.setdefault(pair, Counter())[choice] += 1
    found = {}
    for rater, answers in choices.items():
        agreeing = counted = 0
        for pair, choice in answers.items():
            others = (votes[pair] - Counter([choice])).most_common(2)
            if others and (len(others) == 1 or others[0][1] > others[1][1]):
                counted += 1
                agreeing += choice == others[0][0]
        found[rater] = agreeing, counted
    return found

"""A gate's calibration: scores of groups whose order is known, and the threshold that follows from them, if any."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gmd_ray.quality.calibration.pairs import ScoredPairs
from gmd_ray.quality.calibration.ranking import Ranking, admitted, best_threshold, rank
from gmd_ray.text import printable

CLEAR = 0.9
"""Share of a ranking from which on a threshold between its two groups makes few errors."""
COLUMNS = ("n", "min", "5 %", "median", "95 %", "max")


@dataclass(frozen=True)
class StoreScores:
    """Scores of a store's pseudo-targets, and of some of the photos that they were made from."""

    pseudo_targets: np.ndarray
    """(N,) float32."""
    made: np.ndarray
    """(M,) float32: those of the pseudo-targets that `photos` belong to, in the order of `photos`; M may be 0."""
    photos: np.ndarray
    """(M,) float32 scores of the target photos as they came, enlarged by the student's scale."""


@dataclass(frozen=True)
class Calibration:
    """Scores of the groups, and what they say of the gate."""

    scorer: str
    """The name of the score."""
    higher_is_better: bool
    pairs: tuple[ScoredPairs, ...]
    """The source pairs first; then held-out target photos with their ground truth, where there are any."""
    store: StoreScores | None
    """None where there is no store, or nothing in it is scored."""
    missing: str
    """The reason why `store` is None; empty if it is not."""
    threshold: float
    """The threshold of the settings, to compare with."""

    @property
    def rankings(self) -> list[Ranking]:
        """The ranking of each of `pairs`."""
        return [rank(pairs.better, pairs.worse, self.higher_is_better) for pairs in self.pairs]

    @property
    def teaching(self) -> Ranking | None:
        """The ranking of pseudo-targets and the photos that they were made from; None where none are scored."""
        if self.store is None or not len(self.store.photos):
            return None
        return rank(self.store.made, self.store.photos, self.higher_is_better)

    def as_json(self) -> dict[str, Any]:
        """The rankings and the proposal for programs; `proposal` is null where no threshold can be proposed."""
        return {
            "scorer": self.scorer,
            "higher_is_better": self.higher_is_better,
            "threshold": self.threshold,
            "proposal": self.proposal,
            "misranked": self.misranked,
            "missing": self.missing,
            "rankings": [
                {"pairs": pairs.photos.name, "n": len(pairs.better), **asdict(ranking)}
                for pairs, ranking in zip(self.pairs, self.rankings, strict=True)
            ],
        }

    @property
    def misranked(self) -> bool:
        """True where no threshold helps, because the score prefers the worse images of some pair of groups.

        The source pairs have to be in the right order. The others may be no better than chance, as photos with little
        to mend are, but not backwards.
        """
        source, *others = self.rankings
        if self.teaching is not None:
            others.append(self.teaching)
        return source.verdict != "right" or any(ranking.verdict == "backwards" for ranking in others)

    @property
    def by_source(self) -> float:
        """The threshold that parts clean source photos from degraded ones best."""
        return best_threshold(self.pairs[0].better, self.pairs[0].worse, self.higher_is_better)

    @property
    def by_target(self) -> float | None:
        """The threshold that parts the pseudo-targets best from the photos that they were made from.

        None where there are none, or where the score cannot tell the two groups apart.
        """
        if self.store is None or self.teaching is None or self.teaching.verdict != "right":
            return None
        return best_threshold(self.store.made, self.store.photos, self.higher_is_better)

    @property
    def proposal(self) -> float | None:
        """The proposed threshold; None for a score that misranks.

        It is `by_target` where pseudo-targets and their photos hardly overlap, since these are of one content, and
        `by_source` where they do: then content spreads the scores more than the teacher moves them. Neither rule is
        exact (docs/evaluation.md, "Calibrate the score").
        """
        if self.misranked:
            return None
        clear = self.teaching is not None and self.teaching.share >= CLEAR
        return self.by_target if clear else self.by_source

    def text(self) -> str:
        """Format the table of the groups, the ranking of each pair of groups, and the thresholds with their errors."""
        better = "higher" if self.higher_is_better else "lower"
        groups = self._groups()
        wide = max(len(name) for name, _ in groups)
        lines = [f"scorer    {self.scorer}, {better} is better", ""]
        lines.append(f"{'group':<{wide}}" + "".join(f"{name:>9}" for name in COLUMNS))
        lines += [f"{name:<{wide}}{_row(scores)}" for name, scores in groups]
        lines.append("")
        lines += [f"ranking   {sentence(p, r)}" for p, r in zip(self.pairs, self.rankings, strict=True)]
        lines += [f"ranking   {self._about_store()}", "", *self._thresholds()]
        for pairs in self.pairs:
            if pairs.left_out:
                lines.append(f"left out  {pairs.left_out} {pairs.photos.name} pairs: {pairs.reason}")
        return "\n".join(map(printable, lines))

    def _groups(self) -> list[tuple[str, np.ndarray]]:
        groups = []
        for pairs in self.pairs:
            groups += [(f"{pairs.photos.name}, {pairs.photos.clean}", pairs.better)]
            groups += [(f"{pairs.photos.name}, {pairs.photos.degraded}", pairs.worse)]
        if self.store is not None:
            if len(self.store.photos):
                groups.append(("target, photo", self.store.photos))
            groups.append(("target, pseudo-target", self.store.pseudo_targets))
        return groups

    def _about_store(self) -> str:
        if self.store is None:
            return f"target: no pseudo-targets: {self.missing}"
        if self.teaching is None:
            return "target: none of its photos can be scored beside their pseudo-targets"
        return about_target(self.teaching)

    def _thresholds(self) -> list[str]:
        """Format one line for each threshold, with the share of each group that it is wrong or right on."""
        if self.misranked:
            return ["threshold none: no threshold helps a score that does not put these groups in their order"]
        rules = [(self.by_source, "parts clean from degraded source photos best")]
        if self.by_target is not None:
            rules.append((self.by_target, "parts pseudo-targets from their photos best"))
        told = [(value, f"{rule}{', proposed' if value == self.proposal else ''}") for value, rule in rules]
        told.append((self.threshold, "is set"))
        sign = ">=" if self.higher_is_better else "<="
        groups: list[tuple[str, np.ndarray]] = [("clean", self.pairs[0].better), ("degraded", self.pairs[0].worse)]
        if self.store is not None:
            if len(self.store.photos):
                groups.append(("photos", self.store.photos))
            groups.append(("pseudo-targets", self.store.pseudo_targets))
        heads = [f"{name:>{width}}" for (name, _), width in zip(groups, _WIDTHS, strict=False)]
        lines = [f"{'':<12}{'rejects':>10}{'accepts':>12}", f"{'threshold':<12}{''.join(heads)}"]
        for value, rule in told:
            shares = [admitted(scores, value, self.higher_is_better) for _, scores in groups]
            shares[0] = 1 - shares[0]
            figures = "".join(f"{100 * x:>{w - 2}.1f} %" for x, w in zip(shares, _WIDTHS, strict=False))
            lines.append(f"{f'{sign} {value:g}':<12}{figures}   {rule}")
        return lines


_ORDER = {"right": "in the right order", "unclear": "no better than chance", "backwards": "BACKWARDS"}
_WIDTHS = (10, 12, 10, 18)
"""Columns of the table of thresholds."""


def sentence(pairs: ScoredPairs, ranking: Ranking) -> str:
    """Say in one line how a score ranks pairs of a known order."""
    photos = pairs.photos
    return f"{photos.name}: {_ORDER[ranking.verdict]}: {_shares(photos.clean, photos.degraded, ranking)}"


def about_target(ranking: Ranking) -> str:
    """Say in one line how a score ranks pseudo-targets and the photos that they were made from."""
    told = f"target: {_ORDER[ranking.verdict]}: {_shares('pseudo-target', 'photo', ranking)}"
    if ranking.verdict != "backwards":
        return told
    return f"{told}; either the teacher makes the photos worse, or the score takes their noise or blur for quality"


def _shares(better: str, worse: str, ranking: Ranking) -> str:
    return (
        f"a {better} scores better than a {worse} in {100 * ranking.share:.1f} % of all combinations (50 % is chance), "
        f"and than its own in {100 * ranking.matched:.1f} %"
    )


def _row(scores: np.ndarray) -> str:
    low, early, middle, late, high = np.percentile(scores, [0, 5, 50, 95, 100])
    return f"{len(scores):>9,}" + "".join(f"{value:>9.4g}" for value in (low, early, middle, late, high))

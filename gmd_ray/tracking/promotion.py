"""Promotion of a student to champion: the gates of `tracking.gates`, then a comparison with the present champion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmd_ray.config import PromotionGate

if TYPE_CHECKING:
    from gmd_ray.evaluation import Difference, Evaluation
    from gmd_ray.teachers.catalogue.licence import Licence

CANDIDATE = "adapted"
"""Name of the student that is registered and may be promoted."""

FORCE = "`gmd-ray promote VERSION --anyway --reason TEXT` promotes it all the same"
"""The way out where a refusal is known to be wrong."""

Verdict = tuple[bool, str]
"""True if this figure allows promotion, and a line with the reason."""


@dataclass(frozen=True)
class Champion:
    """The model version that a candidate would replace, with its figures."""

    version: str
    tags: Mapping[str, str]
    """Tags that `register` gave the version: `test_set.<dataset>` and `metric.<dataset>.<metric>`."""
    evaluation: Evaluation | None = None
    """The values by image that travel with the version; None for one of an earlier gmd_ray."""

    @property
    def name(self) -> str:
        return f"champion (version {self.version})"

    def mean(self, dataset: str, metric: str) -> float | None:
        text = self.tags.get(f"metric.{dataset}.{metric}")
        return None if text is None else float(text)

    def images(self, dataset: str, metric: str) -> Mapping[str, float]:
        """Values by image; empty without an evaluation."""
        return {} if self.evaluation is None else self.evaluation.values(CANDIDATE, dataset, metric)


def judge_promotion(gates: Sequence[PromotionGate], evaluation: Evaluation, champion: Champion | None) -> list[Verdict]:
    """Judge the candidate by each gate; if all hold, compare the figures of the gates with the champion's as well.

    A candidate is refused if it is worse than the champion on the same test set: on target photos by any amount, on
    source pairs by more than the gate allows against its own reference. It is refused too if they cannot be compared,
    since nobody knows then which one is worse. A gate `against: champion` replaces this comparison for its figure.

    Args:
        gates: `tracking.gates`.
        evaluation: the figures of the candidate.
        champion: the present champion; None if there is none.

    Returns:
        One verdict per gate, in their order, then one per comparison.
    """
    verdicts = [_judge(gate, evaluation, champion) for gate in gates] or [(True, "no gates are set")]
    if champion is None or not all(holds for holds, _ in verdicts):
        return verdicts
    if not gates:
        return [*verdicts, (True, f"not compared with {champion.name}: a gate names what to compare")]
    asked = {(gate.dataset, gate.metric) for gate in gates if gate.against == "champion"}
    for dataset, metric in dict.fromkeys((gate.dataset, gate.metric) for gate in gates):
        if (dataset, metric) in asked:
            continue
        loss = max(gate.min_gain for gate in gates if (gate.dataset, gate.metric) == (dataset, metric))
        allowed = min(0.0, loss) if dataset == "source" else 0.0
        gate = PromotionGate(metric=metric, dataset=dataset, against="champion", min_gain=allowed)
        verdict = _against_champion(gate, evaluation, champion)
        if isinstance(verdict, str):
            verdict = False, f"refused: not compared: {dataset} {metric}: {verdict}; {FORCE}"
        elif not verdict[0]:
            verdict = False, f"{verdict[1]}; a gate `against: champion` with its own min_gain may allow that"
        verdicts.append(verdict)
    return verdicts


def judge_licence(licence: Licence) -> Verdict:
    """Judge the candidate by its teacher's licence, which `tracking.require_commercial_teacher` asks for."""
    if licence.commercial:
        return True, f"holds: the teacher's licence is {licence}"
    return False, (
        f"refused: the teacher's licence is {licence}, and tracking.require_commercial_teacher is set; "
        "teacher.licence=commercial says that you may use it"
    )


def _judge(gate: PromotionGate, evaluation: Evaluation, champion: Champion | None) -> Verdict:
    what = f"{gate.dataset} {gate.metric}"
    mean = evaluation.mean(CANDIDATE, gate.dataset, gate.metric)
    if gate.dataset not in evaluation.datasets:
        return False, f"refused: {what}: no test set {gate.dataset!r} was evaluated"
    if mean is None:
        return False, f"refused: {what}: no value of {CANDIDATE} ({evaluation.why_missing(gate.dataset, gate.metric)})"
    if gate.against == "champion":
        if champion is None:
            return True, f"holds: {what} {mean:.4g}: there is no champion to beat yet"
        verdict = _against_champion(gate, evaluation, champion)
        if isinstance(verdict, str):
            return False, f"refused: {what}: {verdict}; evaluate it on this one first"
        return verdict
    pairs = evaluation.difference(CANDIDATE, gate.dataset, gate.metric, against=gate.against)
    if pairs is None:
        return False, f"refused: {what}: no value of {gate.against} to compare with"
    if missing := pairs.only_reference:
        return False, f"refused: {what}: {CANDIDATE} has no value on {missing} images where {gate.against} has one"
    return _verdict(gate, mean, pairs.gain, gate.against, pairs)


def _against_champion(gate: PromotionGate, evaluation: Evaluation, champion: Champion) -> Verdict | str:
    """Compare a figure with the champion's: the verdict, or the reason why they cannot be compared."""
    mean, theirs = evaluation.mean(CANDIDATE, gate.dataset, gate.metric), champion.mean(gate.dataset, gate.metric)
    assert mean is not None
    if theirs is None:
        return f"{champion.name} has no value to compare with"
    if champion.tags.get(f"test_set.{gate.dataset}") != evaluation.test_set(gate.dataset):
        return f"{champion.name} was measured on another test set"
    ours, images = evaluation.values(CANDIDATE, gate.dataset, gate.metric), champion.images(gate.dataset, gate.metric)
    pairs = evaluation.compare(gate.dataset, gate.metric, ours, images)
    if pairs is not None and pairs.only_reference:
        lacking = f"{CANDIDATE} has no value on {pairs.only_reference} images where {champion.name} has one"
        return False, f"refused: {gate.dataset} {gate.metric}: {lacking}"
    if pairs is None and evaluation.truth(gate.dataset, gate.metric):
        return f"{champion.name} no longer has the values by image, which are held against the ground truth's"
    gain = (mean - theirs) * (1 if evaluation.directions[gate.metric] else -1) if pairs is None else pairs.gain
    return _verdict(gate, mean, gain, f"{champion.name} {theirs:.4g}", pairs)


def _verdict(gate: PromotionGate, mean: float, gain: float, reference: str, pairs: Difference | None) -> Verdict:
    # Two infinite means give a gain of NaN, which has to refuse: `>=` is False then, `not <` would be True.
    holds = gain >= gate.min_gain
    word, sign = ("holds", ">=") if holds else ("refused", "is not >=")
    count = "" if pairs is None else f" (n={pairs.n})"
    what = f"{gate.dataset} {gate.metric} {mean:.4g}"
    gained = f"gain {gain:+.4g}{_interval(pairs)}{' towards the ground truth' if pairs and pairs.to_truth else ''}"
    phrase = "" if pairs is None else f" ({pairs.phrase})"
    return holds, f"{word}: {what}: {gained} over {reference}{count} {sign} {gate.min_gain:g}{phrase}"


def gain_words(pairs: Difference) -> str:
    """A gain with its 95 % interval as text, `+0.42 [+0.36, +0.48]`; without one for too few images."""
    return f"{pairs.gain:+.4g}{_interval(pairs)}"


def _interval(pairs: Difference | None) -> str:
    """The 95 % interval of a gain as text, `[+0.36, +0.48]` with a space before it; empty where there is none."""
    if pairs is None or pairs.low is None or pairs.high is None:
        return ""
    low, high = (-pairs.high, -pairs.low) if pairs.lower_is_better else (pairs.low, pairs.high)
    return f" [{low:+.3g}, {high:+.3g}]"

"""The verdict on a run: what came of it, in two sentences of plain words."""

from __future__ import annotations

from dataclasses import dataclass

from gmd_ray.evaluation.actor import ADAPTED
from gmd_ray.evaluation.differences import BETTER, TOO_FEW, UNSEEN, WORSE
from gmd_ray.evaluation.results import UNTOUCHED, Evaluation
from gmd_ray.evaluation.summaries.gains import Gains, find_gains, signed
from gmd_ray.evaluation.table import BASELINE, number

UNCLEAR = "unclear"
"""Style of a difference that is neither better nor worse."""


@dataclass(frozen=True)
class Verdict:
    """Two sentences, and how they are coloured."""

    style: str
    """better, worse or unclear."""
    first: str
    second: str


def find_verdict(evaluation: Evaluation) -> Verdict:
    """Compare the adapted student with the baseline on the first test set that has values of both.

    The first sentence says whether the photos became better, how many of them, and by how much. The second says how
    sure that is, what the source domain lost, and whether the untouched photos are better than both students. A gain
    with untouched photos that are better still is of unclear style, and so is all that a no-reference score says
    without ground truth.
    """
    found = [gains for dataset in evaluation.datasets if (gains := find_gains(evaluation, dataset)) is not None]
    if not found:
        why = "no adapted student" if ADAPTED not in evaluation.students else "no metric with a value for both students"
        return Verdict(
            UNCLEAR,
            f"This run cannot say whether adaptation helps: it has {why} to compare.",
            "The figures below are those of the students that were measured.",
        )
    head, others = found[0], found[1:]
    word = head.difference.word
    doubtful = head.is_blind or (word == BETTER and bool(_untouched(evaluation, head)))
    return Verdict(UNCLEAR if doubtful else style_of(word), _first(head, word), _second(evaluation, head, others))


def sentences(evaluation: Evaluation) -> list[str]:
    """The verdict for a table; empty where no adapted student can be compared."""
    if not any(find_gains(evaluation, dataset) for dataset in evaluation.datasets):
        return []
    found = find_verdict(evaluation)
    return [found.first, found.second]


def style_of(word: str) -> str:
    """The style class of `Difference.word`."""
    return word if word in (BETTER, WORSE) else UNCLEAR


def _first(gains: Gains, word: str) -> str:
    n = len(gains.by_image)
    photos = f"{gains.improved} of {n} {gains.dataset} test photos" if n > 1 else f"the one {gains.dataset} test photo"
    improve = f"{photos} improve{'' if n > 1 and gains.improved != 1 else 's'}"
    if n == 1 and not gains.improved:
        improve = f"{photos} does not improve"
    size = signed(gains.difference.gain, gains.unit).lstrip("+−")
    metric = _metric(gains)
    if gains.is_blind:
        score = "rose" if gains.difference.mean > 0 else "fell"
        seen = {BETTER: f"{score}, which is better", WORSE: f"{score}, which is worse"}
        seen |= {UNSEEN: "did not change as far as can be seen", TOO_FEW: "has too few test photos to be judged"}
        return (
            f"Without ground truth this run cannot say whether the photos became better: the score {metric}, which may "
            f"take noise for quality, {seen[word]} ({improve} by it, and it changed by {size} on average)."
        )
    if word == BETTER:
        return f"Adaptation made the restored photos better: {improve}, and the average gain is {size} {metric}."
    if word == WORSE:
        return f"Adaptation made the restored photos worse: {improve}, and the average loss is {size} {metric}."
    change = signed(gains.difference.gain, gains.unit)
    if word == TOO_FEW:
        return f"Too few test photos to judge the adaptation: {improve}, and the average change is {change} {metric}."
    return f"Adaptation made no difference that can be seen: {improve}, and the average change is {change} {metric}."


def _second(evaluation: Evaluation, gains: Gains, others: list[Gains]) -> str:
    parts = []
    interval = _interval(gains)
    if interval:
        parts.append(
            f"With 95 % confidence the average change on photos like these lies between {interval}, if they are "
            f"independent of each other"
        )
    untouched = _untouched(evaluation, gains)
    if untouched:
        parts.append(untouched)
    for other in others:
        change = signed(other.difference.gain, other.unit)
        words = {
            BETTER: f"photos of the {other.dataset} domain gain too ({change}{_by(other)})",
            WORSE: f"photos of the {other.dataset} domain get worse ({change} {_metric(other)}{_doubt(other)})",
            UNSEEN: f"on the {other.dataset} domain no difference is seen ({change})",
        }
        parts.append(words.get(other.difference.word, f"the {other.dataset} domain changes by {change}"))
    if not parts:
        return "More test photos would say how sure that is."
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def _by(gains: Gains) -> str:
    return f" by {_metric(gains)}{_doubt(gains)}" if gains.is_blind else ""


def _doubt(gains: Gains) -> str:
    return ", which may take noise for quality" if gains.is_blind else ""


def _metric(gains: Gains) -> str:
    name = gains.metric.upper()
    if gains.difference.to_truth:
        return f"{name} nearer to the value of the ground truth"
    return name if not gains.difference.lower_is_better else f"{name} (lower is better)"


def _interval(gains: Gains) -> str:
    difference = gains.difference
    if difference.low is None or difference.high is None:
        return ""
    ends = [difference.low, difference.high]
    if difference.lower_is_better:
        ends = [-difference.high, -difference.low]
    return f"{signed(ends[0], gains.unit).removesuffix(gains.unit)} and {signed(ends[1], gains.unit)}"


def _untouched(evaluation: Evaluation, gains: Gains) -> str:
    """A clause for untouched photos that beat both students; empty where they do not."""
    pair = [evaluation.difference(UNTOUCHED, gains.dataset, gains.metric, against=name) for name in (BASELINE, ADAPTED)]
    known = [difference for difference in pair if difference is not None]
    if len(known) < 2 or any(difference.gain <= 0 for difference in known):
        return ""
    means = [evaluation.mean(name, gains.dataset, gains.metric) for name in (UNTOUCHED, ADAPTED)]
    own, ours = (number(mean) for mean in means if mean is not None)
    clearly = "" if all(difference.word == BETTER for difference in known) else ", though not clearly so"
    by = f" by {_metric(gains)}" if gains.is_blind else ""
    return f"yet{by} the untouched photos are better than both students ({own}{gains.unit} against {ours}){clearly}"

"""The verdict on a run in sentences that need no knowledge of statistics."""

from __future__ import annotations

from gmd_ray.evaluation.differences import BETTER, TOO_FEW, UNSEEN, WORSE, Difference
from gmd_ray.evaluation.results import UNTOUCHED, Evaluation
from gmd_ray.evaluation.table import BASELINE, number, signed

ADAPTED = "adapted"
IMAGES = {"target": "target photos", "source": "source images"}


def verdict(evaluation: Evaluation) -> list[str]:
    """Sentences about the adapted student, the most important one first; empty if it was not evaluated.

    The first says what adaptation changed on the first test set with a figure, in its first metric. The second, if the
    untouched photos are better than both students there, says so. The last is about the other test set.
    """
    sentences = []
    for dataset in evaluation.datasets:
        metric = main_metric(evaluation, dataset)
        if metric is None:
            continue
        difference = evaluation.difference(ADAPTED, dataset, metric)
        assert difference is not None
        sentences.append(_change(difference, dataset, metric))
        if untouched := _untouched(evaluation, dataset, metric):
            sentences.append(untouched)
    return sentences


def main_metric(evaluation: Evaluation, dataset: str) -> str | None:
    """The first metric of the settings in which the adapted student can be compared with the baseline."""
    compared = (m for m in evaluation.metrics if evaluation.difference(ADAPTED, dataset, m) is not None)
    return next(compared, None)


def _change(difference: Difference, dataset: str, metric: str) -> str:
    if difference.n == 1:
        return f"On the {dataset} test set the adapted student changes by {_figure(difference, metric)}; no interval."
    where = f"On {difference.n} {IMAGES.get(dataset, dataset)}"
    heads = {
        BETTER: f"{where} the adapted student is better than the unadapted one",
        WORSE: f"{where} the adapted student is worse than the unadapted one",
        UNSEEN: f"{where} no difference is seen between the adapted student and the unadapted one",
        TOO_FEW: f"{where}, too few images to tell, the adapted student changes by",
    }
    sign = "" if difference.word == TOO_FEW else ":"
    return f"{heads[difference.word]}{sign} {_figure(difference, metric)}."


def _figure(difference: Difference, metric: str) -> str:
    """`PSNR +1.62 dB (95 % interval +1.33 to +1.92)`, with the direction where lower is better."""
    unit = " dB" if metric.startswith("psnr") else ""
    like = 10.0 if unit else difference.mean
    what = f"distance of {metric.upper()} to the ground truth's" if difference.to_truth else metric.upper()
    notes = []
    if difference.low is not None and difference.high is not None:
        notes.append(f"95 % interval {signed(difference.low, like)} to {signed(difference.high, like)}")
    if difference.lower_is_better:
        notes.append("lower is better")
    more = f" ({'; '.join(notes)})" if notes else ""
    return f"{what} {signed(difference.mean, like)}{unit}{more}"


def _untouched(evaluation: Evaluation, dataset: str, metric: str) -> str:
    """A sentence if the photos as they are beat both students in a metric; empty otherwise."""
    against = [evaluation.difference(UNTOUCHED, dataset, metric, against=name) for name in (BASELINE, ADAPTED)]
    found = [difference for difference in against if difference is not None]
    if len(found) < 2 or not all(difference.gain > 0 for difference in found):
        return ""
    means = [evaluation.mean(name, dataset, metric) for name in (UNTOUCHED, BASELINE, ADAPTED)]
    own, *others = (number(mean) for mean in means if mean is not None)
    figures = f"{metric.upper()} {own} against {' and '.join(others)}"
    kind = "photos" if dataset == "target" else f"{dataset} images"
    if all(difference.word == BETTER for difference in found):
        return f"The untouched {kind} beat both students ({figures}): better leave them as they are."
    return f"The untouched {kind} have a better mean than both students ({figures}), though not clearly so."

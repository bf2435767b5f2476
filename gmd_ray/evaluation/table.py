"""The rows, columns and texts that the tables of an evaluation have in common, in every format."""

from __future__ import annotations

from gmd_ray.evaluation.differences import Difference
from gmd_ray.evaluation.results import TRUTH, UNTOUCHED, Evaluation

BASELINE = "baseline"
COST_COLUMNS = ["parameters", "s/image"]


def measured(evaluation: Evaluation, dataset: str) -> list[str]:
    """The metrics that have a value on a test set, in the order of the settings."""
    return [
        metric
        for metric in evaluation.metrics
        if any(evaluation.values(student, dataset, metric) for student in evaluation.students)
    ]


def columns(evaluation: Evaluation, dataset: str) -> list[str]:
    """The metrics that a table shows: those with a value, and those that lack nothing but ground truth."""
    shown = {*measured(evaluation, dataset), *evaluation.lacking(dataset)}
    return [metric for metric in evaluation.metrics if metric in shown]


def cost_cells(evaluation: Evaluation, dataset: str, student: str) -> list[str]:
    """A student's parameters and seconds per image, as text."""
    cost = evaluation.costs.get(dataset, {}).get(student)
    if cost is None:
        return ["–", "–"]
    return ["–" if cost.parameters is None else f"{cost.parameters:,}", number(cost.seconds)]


def cost_note(evaluation: Evaluation, dataset: str) -> str:
    """A note that explains the seconds; empty if there are none."""
    devices = list(dict.fromkeys(cost.device for cost in evaluation.costs.get(dataset, {}).values()))
    if not devices:
        return ""
    return (
        "s/image: median over the test set, one image at a time, without the first one of each worker, on "
        f"{' and '.join(devices)}"
    )


def number(value: float) -> str:
    """Four significant digits or two decimals, whichever shows more: 24.31, 0.7214, 15.66."""
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}" if abs(value) < 1 else f"{value:.3f}"


def change(difference: Difference, unit: float) -> str:
    """The difference as text, `+0.42 [+0.36, +0.48]`, with as many decimals as `number(unit)`."""
    mean = signed(difference.mean, unit)
    if difference.low is None or difference.high is None:
        return mean
    return f"{mean} [{signed(difference.low, unit)}, {signed(difference.high, unit)}]"


def signed(value: float, unit: float) -> str:
    """A number with its sign and as many decimals as `number(unit)`."""
    decimals = len(number(unit).rsplit(".", 1)[1])
    return f"{value:+.{decimals}f}"


def source_loss(evaluation: Evaluation) -> str:
    """A note for a run whose control `source_only` loses PSNR on the source; empty for any other.

    That control trains on nothing but the source, so its loss is the work of the fine-tune and not of the photos. The
    note appears if the interval of the loss leaves zero out.
    """
    difference = evaluation.difference("source_only", "source", "psnr", against=BASELINE)
    if difference is None or difference.low is None or difference.high is None or difference.high >= 0:
        return ""
    return (
        f"source_only loses {-difference.mean:.2f} dB PSNR on the source itself (95 % interval "
        f"{-difference.high:.2f} to {-difference.low:.2f}): the fine-tune harms a student that was trained to its "
        f"end, whatever the photos are; try a lower training.lr, training.loss=l2, a larger training.batch_size or "
        f"training.ema nearer to 1 (docs/training.md)"
    )


def label(name: str) -> str:
    """The name of a row as people read it."""
    return {UNTOUCHED: "untouched photo", TRUTH: "ground truth"}.get(name, name)


def shown_rows(evaluation: Evaluation, dataset: str) -> list[str]:
    """The rows of a table: the untouched photo, every method with a value or a reason, and the ground truth.

    The ground truth is a row if it has a value of a no-reference metric.
    """
    present = evaluation.present(dataset)
    rows = [name for name in evaluation.students if name in present]
    has_truth = any(evaluation.truth(dataset, metric) for metric in evaluation.metrics)
    return [*rows, TRUTH] if has_truth else rows


def variant_notes(evaluation: Evaluation, metrics: list[str]) -> list[str]:
    """One line for each metric: what is measured of an image, and in which direction it is better."""
    lines = []
    for metric in metrics:
        better = "higher is better" if evaluation.directions[metric] else "lower is better"
        variant = evaluation.variants.get(metric)
        lines.append(f"{metric}: {better}" + (f"; {variant}" if variant else ""))
    return lines


def word_note(evaluation: Evaluation, dataset: str) -> str:
    """The note that explains differences, intervals and words; empty without a baseline to compare with."""
    if BASELINE not in evaluation.students:
        return ""
    note = (
        f"difference to {BASELINE} with its 95 % interval (BCa bootstrap over images); better or worse after Holm's "
        "correction for all differences of this table"
    )
    if any(evaluation.truth(dataset, metric) for metric in evaluation.metrics):
        note += (
            "; a no-reference metric is judged by its distance to the ground truth's value, image by image: closer is "
            "better"
        )
    return note

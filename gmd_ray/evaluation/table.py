"""The figures of an evaluation as a Markdown table."""

from __future__ import annotations

from gmd_ray.evaluation.differences import Difference
from gmd_ray.evaluation.results import NO_TRUTH, Evaluation, evaluation_folder
from gmd_ray.storage import write_bytes

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
    return f"s/image: median over the test set, one image at a time, on {' and '.join(devices)}" if devices else ""


def number(value: float) -> str:
    """Four significant digits or two decimals, whichever shows more: 24.31, 0.7214, 15.66."""
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}" if abs(value) < 1 else f"{value:.3f}"


def change(difference: Difference, unit: float) -> str:
    """The difference as text, `+0.42 [+0.36, +0.48]`, with as many decimals as `number(unit)`."""
    decimals = len(number(unit).rsplit(".", 1)[1])
    mean = f"{difference.mean:+.{decimals}f}"
    if difference.low is None or difference.high is None:
        return mean
    return f"{mean} [{difference.low:+.{decimals}f}, {difference.high:+.{decimals}f}]"


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


def markdown(evaluation: Evaluation) -> str:
    """A Markdown table for each test set, followed by the values that are missing and the reasons."""
    lines = ["# Evaluation", ""]
    for dataset in evaluation.datasets:
        metrics, note = columns(evaluation, dataset), cost_note(evaluation, dataset)
        lines += [f"## {dataset} ({len(evaluation.images(dataset))} images)", ""]
        arrows = [f"{metric} {'↑' if evaluation.directions[metric] else '↓'}" for metric in metrics]
        heads = ["student", *arrows, *(COST_COLUMNS if note else [])]
        lines += [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
        for student in evaluation.students:
            cells = [_cell(evaluation, student, dataset, metric) for metric in metrics]
            cells += cost_cells(evaluation, dataset, student) if note else []
            lines.append(f"| {' | '.join([student, *cells])} |")
        lines.append("")
        lines += [f"- {metric}: unavailable: {NO_TRUTH}" for metric in evaluation.lacking(dataset)]
        lines += [f"- {note}"] if note else []
        lines += [f"- {loss}"] if dataset == "source" and (loss := source_loss(evaluation)) else []
        for student, metric, reason, n in evaluation.failures(dataset):
            lines.append(f"- {student}, {metric}: no value on {n} images: {reason}")
        if lines[-1]:
            lines.append("")
    if BASELINE in evaluation.students:
        lines += [f"In brackets: difference to {BASELINE} with its 95 % interval over images. ↑ higher is better.", ""]
    lines += [f"- {metric}: unavailable: {reason}" for metric, reason in evaluation.unavailable.items()]
    return "\n".join(lines).rstrip() + "\n"


def save_table(evaluation: Evaluation, out: str) -> None:
    """Write the Markdown table to `<out>/evaluation/table.md`."""
    write_bytes(f"{evaluation_folder(out)}/table.md", markdown(evaluation).encode())


def _cell(evaluation: Evaluation, student: str, dataset: str, metric: str) -> str:
    mean = evaluation.mean(student, dataset, metric)
    if mean is None:
        return "–"
    difference = evaluation.difference(student, dataset, metric, against=BASELINE)
    if student == BASELINE or difference is None:
        return number(mean)
    return f"{number(mean)} ({change(difference, mean)})"

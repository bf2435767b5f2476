"""The visual report: one self-contained HTML file."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import yaml

from gmd_ray.config import Config
from gmd_ray.config.load import resolved
from gmd_ray.config.secrets import redact
from gmd_ray.evaluation.actor import ADAPTED
from gmd_ray.evaluation.differences import BETTER, WORSE, Difference
from gmd_ray.evaluation.results import NO_TRUTH, Evaluation
from gmd_ray.evaluation.store import FAILED_SHOWN, StoreSummary, open_store
from gmd_ray.evaluation.table import (
    BASELINE,
    COST_COLUMNS,
    change,
    columns,
    cost_cells,
    cost_note,
    number,
    source_loss,
)
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.progress import NullRecorder, Recorder
from gmd_ray.report import svg
from gmd_ray.report.gallery import held_out_rows, pair_rows
from gmd_ray.report.pages import render
from gmd_ray.report.strip import typical
from gmd_ray.storage import read_bytes, write_bytes
from gmd_ray.teachers import teacher_licence

PACKAGES = ("gmd_ray", "ray", "torch", "diffusers", "spandrel", "pyiqa", "mlflow", "pyarrow", "numpy")


class PromotionOutcome(Protocol):
    """The decision of the promotion gates, as `gmd_ray.tracking.Decision` has it."""

    @property
    def promoted(self) -> bool: ...
    @property
    def reasons(self) -> Sequence[str]: ...
    @property
    def version(self) -> str | None: ...


def write_report(
    cfg: Config,
    evaluation: Evaluation,
    recorder: Recorder | None = None,
    *,
    decision: PromotionOutcome | None = None,
    inputs: RunInputs | None = None,
) -> str:
    """Write `<out>/report.html`: figures, promotion, pair store and pictures of a run.

    Only the evaluation is required. Sections for which a run has nothing (no pair store, ground truth, training log or
    registry) are left out.

    Args:
        cfg: the settings.
        evaluation: the figures and pictures.
        recorder: gets the report as an artifact.
        decision: the decision of the promotion gates.
        inputs: folder listings that the run shares; the folders are listed here if it is None.

    Returns:
        The path of the report.

    Raises:
        DataError: the pair store is damaged.
    """
    store = open_store(cfg)
    accepted, rejected = pair_rows(cfg, store, evaluation, inputs or RunInputs()) if store is not None else ([], [])
    target_rows = held_out_rows(evaluation, "target")
    first = typical(evaluation, "target", 1) if ADAPTED in evaluation.students else []
    page = render(
        "report.html.j2",
        out=cfg.out,
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        headline=_headline(evaluation, evaluation.datasets),
        side_note=_headline(evaluation, evaluation.datasets[1:]),
        remark=cfg.evaluation.remark,
        first_rows=[row for row in target_rows if row.id in first],
        decision=decision,
        model=cfg.tracking.model,
        licence=str(teacher_licence(cfg.teacher)) if cfg.teacher.path or ":" in cfg.teacher.method else "",
        pairs=None if store is None else _counts(store),
        tables=[_table(evaluation, dataset) for dataset in evaluation.datasets],
        baseline=BASELINE,
        unavailable=evaluation.unavailable,
        charts=_charts(cfg, store),
        costs=[] if store is None else _costs(store.manifest.cost),
        failed=[] if store is None else store.failed,
        failed_shown=FAILED_SHOWN,
        target_rows=target_rows,
        source_rows=held_out_rows(evaluation, "source"),
        accepted=accepted,
        rejected=rejected,
        config=_config(cfg),
        manifest="" if store is None else json.dumps(store.manifest.to_json(), indent=2),
        versions=_versions(),
    )
    path = f"{cfg.out.rstrip('/')}/report.html"
    # Settings, manifest and URIs of failed rows may contain passwords, and people send reports to each other.
    write_bytes(path, redact(page).encode())
    (recorder or NullRecorder()).artifact(path)
    return path


def _headline(evaluation: Evaluation, datasets: Sequence[str]) -> dict[str, Any] | None:
    """The gain of the adapted student, in the first metric with a value on the first test set that has one."""
    for dataset in datasets:
        for metric in evaluation.metrics:
            difference = evaluation.difference(ADAPTED, dataset, metric, against=BASELINE)
            if difference is None:
                continue
            unit = " dB" if metric.startswith("psnr") else ""
            means = [evaluation.mean(student, dataset, metric) for student in (BASELINE, ADAPTED)]
            gain, _, interval = change(difference, 10.0 if unit else 0.1).partition(" ")
            return {
                "gain": f"{gain.replace('-', '−')}{unit}",
                "metric": metric.upper(),
                "where": f"{difference.n} {dataset} test images",
                "means": " → ".join(number(mean) for mean in means if mean is not None),
                "spread": f"95 % interval {interval}" if interval else "",
                "verdict": _verdict(difference),
            }
    return None


def _verdict(difference: Difference) -> str:
    """Class of a difference in the style sheet: better, worse, or unclear."""
    return difference.word if difference.word in (BETTER, WORSE) else "unclear"


def _counts(store: StoreSummary) -> dict[str, Any]:
    accepted, rejected = len(store.accepted), len(store.rejected)
    scored = accepted + rejected
    seconds = store.manifest.seconds
    return {
        "inputs": store.inputs,
        "accepted": accepted,
        "rejected": rejected,
        "failed": store.failed_count,
        "pass_rate": f"{100 * accepted / scored:.1f} %" if scored else "–",
        "threshold": f"{'≥' if store.higher_is_better else '≤'} {store.threshold:g}",
        "fidelity": "" if store.fidelity is None else str(store.fidelity),
        "seconds": f"{seconds:.0f} s" if isinstance(seconds, (int, float)) else "",
        "warnings": store.gate_warnings,
    }


def _costs(cost: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows (name, planned, actual) of the manifest's `cost`; an unknown figure is a dash."""
    predicted, actual = cost.get("predicted") or {}, cost.get("actual") or {}
    currency = actual.get("currency", "")
    rows = [
        ("images projected", "images", 1.0),
        ("accelerator-hours", "accelerator_hours", 1.0),
        ("wall time, hours", "wall_hours", 1.0),
        ("disk, GB", "disk_bytes", 1e9),
        (f"cost, {currency}", "price", 1.0),
    ]

    def figure(side: Mapping[str, Any], key: str, unit: float) -> str:
        value = side.get(key)
        return (
            "–" if value is None else f"{value:,}" if isinstance(value, int) and unit == 1 else f"{value / unit:,.4g}"
        )

    table = [(name, figure(predicted, key, unit), figure(actual, key, unit)) for name, key, unit in rows]
    return [row for row in table if row[1:] != ("–", "–")]


def _table(evaluation: Evaluation, dataset: str) -> dict[str, Any]:
    """The cells of a metric table, with marks for the best mean of a column and for clear differences."""
    metrics, note = columns(evaluation, dataset), cost_note(evaluation, dataset)
    best: dict[str, float] = {}
    for metric in metrics:
        means = [evaluation.mean(student, dataset, metric) for student in evaluation.students]
        pick = max if evaluation.directions[metric] else min
        best[metric] = pick((mean for mean in means if mean is not None), default=math.nan)
    rows = []
    for student in evaluation.students:
        cells = []
        for metric in metrics:
            mean = evaluation.mean(student, dataset, metric)
            difference = (
                evaluation.difference(student, dataset, metric, against=BASELINE) if student != BASELINE else None
            )
            cells.append(
                {
                    "mean": "–" if mean is None else number(mean),
                    "change": "" if difference is None or mean is None else change(difference, mean).replace("-", "−"),
                    "verdict": "" if difference is None else _verdict(difference),
                    "best": mean is not None and mean == best[metric],
                }
            )
        plain = cost_cells(evaluation, dataset, student) if note else []
        cells += [{"mean": text, "change": "", "verdict": "", "best": False} for text in plain]
        rows.append({"student": student, "cells": cells})
    return {
        "dataset": dataset,
        "images": len(evaluation.images(dataset)),
        "columns": [(metric, "↑" if evaluation.directions[metric] else "↓") for metric in metrics]
        + [(name, "") for name in COST_COLUMNS if note],
        "lacking": [(metric, NO_TRUTH) for metric in evaluation.lacking(dataset)],
        "note": note,
        "warning": source_loss(evaluation) if dataset == "source" else "",
        "rows": rows,
        "failures": evaluation.failures(dataset),
    }


def _charts(cfg: Config, store: StoreSummary | None) -> list[dict[str, Any]]:
    charts = []
    if store is not None and store.scores:
        accepted, rejected = ([score for _, score in pairs] for pairs in (store.accepted, store.rejected))
        charts.append({"title": "Gate scores", "svg": svg.histogram(accepted, rejected, store.threshold)})
    losses = _losses(cfg)
    if losses:
        charts.append({"title": "Fine-tuning loss", "svg": svg.curves(losses)})
    return charts


def _losses(cfg: Config) -> dict[str, list[tuple[float, float]]]:
    """Pairs (step, loss) of each fine-tune that has a `curve.jsonl` in `<out>/finetune/<name>`."""
    series = {}
    for name in (ADAPTED, *cfg.controls):
        data = read_bytes(f"{cfg.out.rstrip('/')}/finetune/{name}/curve.jsonl") or b""
        whole = data[: data.rfind(b"\n") + 1]  # a killed run may leave half a line
        logged = [figures for figures in map(json.loads, whole.splitlines()) if "loss" in figures]
        if logged:
            series[name] = [(figures["step"], figures["loss"]) for figures in logged]
    return series


def _config(cfg: Config) -> str:
    return yaml.safe_dump(resolved(cfg), sort_keys=False, allow_unicode=True)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions

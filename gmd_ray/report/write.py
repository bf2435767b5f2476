"""The visual report: one self-contained HTML file."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

import numpy as np
import yaml

from gmd_ray.config import Config
from gmd_ray.config.load import resolved
from gmd_ray.config.places import below
from gmd_ray.evaluation.actor import ADAPTED
from gmd_ray.evaluation.results import Evaluation
from gmd_ray.evaluation.store import FAILED_SHOWN, StoreSummary, open_store
from gmd_ray.evaluation.summaries.gains import Gains, find_gains
from gmd_ray.evaluation.summaries.verdict import find_verdict
from gmd_ray.evaluation.table import BASELINE
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.progress import NullRecorder, Recorder
from gmd_ray.report import charts
from gmd_ray.report.gallery import fit, held_out_galleries, label, pair_galleries, source_gallery
from gmd_ray.report.pages import render
from gmd_ray.report.placeless import hide_places, last_name, short_places
from gmd_ray.report.tables import cost_table, metric_table, pair_counts, throughput
from gmd_ray.storage import read_bytes, write_bytes
from gmd_ray.teachers import teacher_licence

PACKAGES = ("gmd_ray", "ray", "torch", "diffusers", "spandrel", "pyiqa", "mlflow", "pyarrow", "numpy")
DOCUMENT_SHOWN = 60_000
"""Characters of the settings and of the manifest that the report shows at most."""


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
    """Write `<out>/report.html`: verdict, photographs, figures, pairs, training, costs and settings of a run.

    Only the evaluation is required. Sections for which a run has nothing (no pair store, ground truth, training log or
    registry) are left out. The page holds no path of this machine, and less than 15 MB.

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
    page = make_report(cfg, evaluation, decision, inputs or RunInputs())
    path = below(cfg.out, "report.html")
    write_bytes(path, page.encode())
    (recorder or NullRecorder()).artifact(path)
    return path


def make_report(cfg: Config, evaluation: Evaluation, decision: PromotionOutcome | None, inputs: RunInputs) -> str:
    """Make the page of `write_report`."""
    store = open_store(cfg)
    gains = {dataset: find_gains(evaluation, dataset) for dataset in evaluation.datasets}
    logs = _training_logs(cfg)
    galleries = held_out_galleries(evaluation, gains.get("target"), cfg.evaluation.report_images)
    galleries += pair_galleries(cfg, store, evaluation, inputs) if store is not None else []
    galleries, uris = fit([*galleries, source_gallery(evaluation, gains.get("source"))])
    page = render(
        "report.html.j2",
        name=last_name(cfg.out),
        written=datetime.datetime.now(datetime.UTC).strftime("%d %B %Y, %H:%M UTC"),
        verdict=find_verdict(evaluation),
        remark=cfg.evaluation.remark,
        decision=decision,
        model=cfg.tracking.model,
        licence=str(teacher_licence(cfg.teacher)) if cfg.teacher.path or ":" in cfg.teacher.method else "",
        galleries=galleries,
        uris=uris,
        pairs=None if store is None else pair_counts(store),
        tables=[metric_table(evaluation, dataset) for dataset in evaluation.datasets],
        label=label,
        unavailable=evaluation.unavailable,
        image_charts=_image_charts(evaluation, [found for found in gains.values() if found is not None]),
        pair_charts=_pair_charts(store),
        loss_charts=_loss_charts(logs),
        speeds=throughput(store, logs),
        costs=None if store is None else cost_table(cfg, store.manifest.cost),
        failed=[] if store is None else store.failed,
        failed_shown=FAILED_SHOWN,
        config=_cut(yaml.safe_dump(short_places(resolved(cfg)), sort_keys=False, allow_unicode=True)),
        manifest="" if store is None else _cut(json.dumps(short_places(store.manifest.to_json()), indent=2)),
        versions=_versions(),
    )
    return hide_places(page, _places(cfg))


def _image_charts(evaluation: Evaluation, found: Sequence[Gains]) -> list[dict[str, Any]]:
    """Each image before and after, and the distribution of the gains, for every test set."""
    shown = []
    for gains in found:
        if len(gains.by_image) < 2:
            continue
        metric, difference = gains.metric.upper(), gains.difference
        before, after = (evaluation.values(name, gains.dataset, gains.metric) for name in (BASELINE, ADAPTED))
        ids = sorted(gains.by_image)
        low, high = difference.low, difference.high
        if difference.lower_is_better and low is not None and high is not None:
            low, high = -high, -low
        values = [gains.by_image[image] for image in ids]
        unit = f"gain, dB {metric}" if gains.unit else f"gain, {metric}"
        mean = f"{gains.improved} of {len(ids)} photos improve. The line is the mean"
        shown.append(
            {
                "title": f"Gains of the {gains.dataset} photos",
                "svg": charts.gains(values, difference.gain, low, high, unit),
                "note": f"{mean}{', the band its 95 % interval' if low is not None else ''}.",
            }
        )
        if not difference.to_truth:
            side = "above" if evaluation.directions[gains.metric] else "below"
            points = charts.scatter(
                [before[image] for image in ids], [after[image] for image in ids], metric,
                evaluation.directions[gains.metric],
            )  # fmt: skip
            note = f"A point for each photo; those {side} the dashed line became better."
            shown.append({"title": f"Each {gains.dataset} photo", "svg": points, "note": note})
    return shown


def _pair_charts(store: StoreSummary | None) -> list[dict[str, Any]]:
    if store is None or not store.scores:
        return []
    accepted, rejected = ([score for _, score in pairs] for pairs in (store.accepted, store.rejected))
    scores, better = np.array([score for _, score in store.scores]), 1 if store.higher_is_better else -1

    def share(limit: float) -> float:
        return float(np.mean(better * scores >= better * limit))

    return charts.score_charts(accepted, rejected, store.threshold, share if store.fidelity is None else None)


def _loss_charts(logs: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    def line(entries: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
        return [(entry["step"], entry[key]) for entry in entries if entry.get(key) is not None]

    shown: list[dict[str, Any]] = []
    losses = {label(name): points for name, entries in logs.items() if (points := line(entries, "loss"))}
    if losses:
        shown.append({"title": "Loss of the fine-tune", "svg": charts.curves(losses, "training loss"), "note": ""})
    parts = {"source pairs": "loss_source", "accepted pairs": "loss_target"}
    adapted = {name: points for name, key in parts.items() if (points := line(logs.get(ADAPTED, []), key))}
    if len(adapted) == 2:
        note = "The adapted student's loss on each kind of pair."
        shown.append({"title": "Loss by kind of pair", "svg": charts.curves(adapted, "loss"), "note": note})
    return shown


def _training_logs(cfg: Config) -> dict[str, list[dict[str, Any]]]:
    """Entries with a loss of each fine-tune that has a `curve.jsonl` in `<out>/finetune/<name>`."""
    logs = {}
    for name in (ADAPTED, *cfg.controls):
        data = read_bytes(below(cfg.out, f"finetune/{name}/curve.jsonl")) or b""
        whole = data[: data.rfind(b"\n") + 1]  # a killed run may leave half a line
        logged = [figures for figures in map(json.loads, whole.splitlines()) if "loss" in figures]
        if logged:
            logs[name] = logged
    return logs


def _places(cfg: Config) -> Iterator[str]:
    """Every text of the settings that may be a path or a URL."""
    for item in fields(cfg):
        yield from _texts(getattr(cfg, item.name))


def _texts(value: Any) -> Iterator[str]:
    if is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, item.name) for item in fields(value)]
    elif isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, str) and "/" in value:
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)


def _cut(text: str) -> str:
    return text if len(text) <= DOCUMENT_SHOWN else text[:DOCUMENT_SHOWN] + "\n(cut here)"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions

"""The figures of an evaluation as a JSON document for programs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from gmd_ray.evaluation.differences import Difference
from gmd_ray.evaluation.results import Evaluation
from gmd_ray.evaluation.statistics import LEVEL, RESAMPLES, SEED
from gmd_ray.evaluation.summaries.published import published_rows
from gmd_ray.evaluation.summaries.verdict import sentences
from gmd_ray.evaluation.table import BASELINE, columns, label, shown_rows


def json_text(evaluation: Evaluation) -> str:
    """One document: the verdict, and for each test set every row of its table with means, differences and costs.

    A difference is to the baseline: mean, low, high, n, p, adjusted_p, word, lower_is_better, to_truth. Figures that do
    not exist are null.
    """
    document = {
        "verdict": sentences(evaluation),
        "settings": evaluation.settings,
        "interval": {"level": LEVEL, "method": "BCa bootstrap over images", "resamples": RESAMPLES, "seed": SEED},
        "against": BASELINE,
        "test_sets": {dataset: _test_set(evaluation, dataset) for dataset in evaluation.datasets},
        "unavailable": evaluation.unavailable,
        "published": _published(evaluation),
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _test_set(evaluation: Evaluation, dataset: str) -> dict[str, Any]:
    metrics = columns(evaluation, dataset)
    return {
        "images": len(evaluation.images(dataset)),
        "digest": evaluation.test_set(dataset),
        "metrics": {
            metric: {
                "lower_is_better": not evaluation.directions[metric],
                "judged_by_distance_to_truth": bool(evaluation.truth(dataset, metric)),
                "variant": evaluation.variants.get(metric, ""),
            }
            for metric in metrics
        },
        "rows": [_row(evaluation, dataset, name, metrics) for name in shown_rows(evaluation, dataset)],
        "missing": [
            {"method": name, "metric": metric, "reason": reason, "images": n}
            for name, metric, reason, n in evaluation.failures(dataset)
        ],
    }


def _row(evaluation: Evaluation, dataset: str, name: str, metrics: list[str]) -> dict[str, Any]:
    cost = evaluation.costs.get(dataset, {}).get(name)
    return {
        "method": name,
        "label": label(name),
        "parameters": cost.parameters if cost else None,
        "seconds_per_image": cost.seconds if cost else None,
        "device": cost.device if cost else None,
        "values": {
            metric: {
                "mean": _finite(evaluation.mean(name, dataset, metric)),
                "images": len(evaluation.values(name, dataset, metric)),
                "difference": _difference(evaluation.difference(name, dataset, metric)),
            }
            for metric in metrics
        },
    }


def _difference(found: Difference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    figures = {key: _finite(value) if isinstance(value, float) else value for key, value in asdict(found).items()}
    return {**figures, "word": found.word}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _published(evaluation: Evaluation) -> dict[str, Any] | None:
    if evaluation.published is None:
        return None
    rows = [asdict(row) for row in published_rows(evaluation.published)]
    return {"table": evaluation.published, "rows": rows}

"""Evaluations with given values, and a run that registers and judges a student by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from gmd_ray.config import Config
from gmd_ray.evaluation import Evaluation
from gmd_ray.evaluation.results import NO_TRUTH, PICTURES, ROWS, TRUTH, UNAVAILABLE
from gmd_ray.tracking import Decision, promote, register, start_run

HIGHER = {"psnr": True, "niqe": False, "lpips": False}


def measured(
    values: Mapping[tuple[str, str, str], list[float | None]],
    unavailable: Mapping[str, str] | None = None,
    lacking: Sequence[str] = (),
) -> Evaluation:
    """Build an evaluation from the values of image 0, 1, ... by (student, dataset, metric)."""
    rows = [
        {
            "dataset": dataset,
            "id": f"{i}.png",
            "student": student,
            "metric": metric,
            "value": value,
            "error": "no luck" if value is None else None,
            "higher_is_better": HIGHER[metric],
        }
        for (student, dataset, metric), line in values.items()
        for i, value in enumerate(line)
    ]
    rows += [
        {"dataset": "target", "id": "0.png", "student": "adapted", "metric": metric, "error": UNAVAILABLE + reason}
        for metric, reason in (unavailable or {}).items()
    ]
    rows += [
        {"dataset": "target", "id": "0.png", "student": "adapted", "metric": metric, "error": NO_TRUTH}
        for metric in lacking
    ]
    students = tuple(dict.fromkeys(student for student, _, _ in values if student != TRUTH))
    table = pa.Table.from_pylist(rows, schema=ROWS)
    return Evaluation(table, PICTURES.empty_table(), students, ("psnr", "niqe", "lpips", "dists"), "crop_border=0")


def figures(gain: float) -> Evaluation:
    """A target test set on which the adapted student gains `gain` dB."""
    return measured(
        {("baseline", "target", "psnr"): [20, 22, 24], ("adapted", "target", "psnr"): [20 + gain, 22 + gain, 24 + gain]}
    )


def student_file(folder: Path, content: bytes = b"weights") -> str:
    path = folder / "student.safetensors"
    path.write_bytes(content)
    return str(path)


def version_of(cfg: Config, path: str, evaluation: Evaluation) -> tuple[str, Decision]:
    """Register and judge within the run of `cfg.out`."""
    with start_run(cfg, {}) as recorder:
        version = register(cfg, recorder, path, evaluation)
        assert version is not None
        return version, promote(cfg, recorder, version, evaluation)

"""The places that a run writes to, and the free disk that it needs there."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from gmd_ray.config import Config
from gmd_ray.destinations import why_no_object, why_unwritable
from gmd_ray.errors import GmdError
from gmd_ray.images.sets.listed import TARGET
from gmd_ray.planning.data_sets import DataSet
from gmd_ray.planning.findings import Findings
from gmd_ray.weights import node_copy

_SQLITE = "sqlite:///"
_KEPT = ("pairs", "pairs/rows", "finetune", "evaluation", "prompts", "mlartifacts")
"""Folders of a run directory that an earlier run, perhaps by another user, may have made."""
_FILES = ("config.yaml", "mlflow.db", "report.html", "pairs/settings.json", "pairs/manifest.json")
_LEAST = 0.2
"""Lower bound of PNG bytes over raw bytes: smooth photos come to a third, noisy ones to two thirds."""
_COPIES = 4
"""Copies of the weights in a checkpoint: the weights, two moments of the optimizer, the moving average."""


def check_places(found: Findings, cfg: Config) -> None:
    """Check that the run directory, what an earlier run left in it, and a local tracking database can be written.

    Behind a URL, an object is written and removed: the bucket, the credentials and the server are tried thereby.
    """
    if "://" in cfg.out:
        if why := why_no_object(cfg.out):
            found.error(
                "place", "out", f"out={cfg.out}: cannot be written ({why}); check the address, and the credentials"
            )
    else:
        if why := why_unwritable(cfg.out, folder=True):
            found.error("place", "out", f"out={cfg.out}: cannot be written ({why})")
        else:
            for name in (*_KEPT, *_FILES):
                path = os.path.join(cfg.out, name)
                if os.path.lexists(path) and (why := why_unwritable(path, folder=name in _KEPT)):
                    found.error("place", "out", f"{path}: cannot be written ({why}); mend that, or give another out")
    uri = cfg.tracking.uri
    if cfg.tracking.enabled and uri and uri.startswith(_SQLITE):
        path = uri.removeprefix(_SQLITE).partition("?")[0]
        if path and not path.startswith(":memory:") and (why := why_unwritable(path, folder=False)):
            found.error("place", "tracking.uri", f"tracking.uri={uri}: cannot be written ({why})")


def check_disk(
    found: Findings, cfg: Config, sets: Mapping[str, DataSet], scale: int | None, stages: Collection[str]
) -> None:
    """Compare the free disk with the least and the most that a run may write.

    Too little for the least is an error, too little for the most a warning.
    """
    if "://" in cfg.out:
        return
    low, high = 0.0, 0.0
    if "generate" in stages and TARGET in sets:
        pairs = _pairs(cfg, sets[TARGET], scale or 1)
        written = _size(Path(cfg.out, "pairs", "rows"))
        low, high = max(0.0, _LEAST * pairs - written), max(0.0, pairs - written)
    if not {"finetune", "pretrain"}.isdisjoint(stages):
        checkpoints = _checkpoints(cfg, stages)
        low, high = low + checkpoints, high + checkpoints
    free = shutil.disk_usage(_nearest(cfg.out)).free
    told = f"out={cfg.out}: {_gb(free)} GB are free, and the run writes {_gb(low)} to {_gb(high)} GB"
    if free < low:
        found.error("disk", "out", f"{told}; give another out, or make room")
    elif free < high:
        found.warn("disk", "out", f"{told}; it may not suffice")
    elif high:
        found.fact("disk", "out", told)


def _pairs(cfg: Config, target: DataSet, scale: int) -> float:
    """Bytes of the pair store if its images were stored as raw 8-bit RGB."""
    assert target.lq is not None
    pixels = sum(header.size[0] * header.size[1] for header in target.lq.headers if header.size is not None)
    kept = 2 if cfg.generation.keep_restored else 1
    return 3.0 * pixels * (1 + kept * scale**2)


def _checkpoints(cfg: Config, stages: Collection[str]) -> float:
    """Bytes of the checkpoints of every unfinished fine-tune: those it keeps, and the one being written."""
    student = 0
    with contextlib.suppress(GmdError):  # a student that cannot be had here, which `find_scale` tells
        student = _size(node_copy(cfg.student.path)) if cfg.student.path else 0
    names = ["pretrained"] if "pretrain" in stages else ["adapted", *cfg.controls]
    todo = [name for name in names if not Path(cfg.out, "finetune", name, "finetuned.json").is_file()]
    return float(len(todo) * (cfg.training.keep_checkpoints + 1) * _COPIES * student)


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0


def _nearest(path: str) -> Path:
    """The nearest parent folder that exists."""
    place = Path(os.path.abspath(path))
    while not place.is_dir():
        place = place.parent
    return place


def _gb(size: float) -> str:
    return f"{size / 1e9:,.3g}"

"""A probe: a few images through the real stages, in a temporary folder, to measure their cost."""

from __future__ import annotations

import logging
import math
import shutil
import statistics
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow.compute as pc

from gmd_ray.config import Config, PoolConfig
from gmd_ray.errors import DataError
from gmd_ray.images.files.encode import png_size
from gmd_ray.images.listing import ImageFile, read_file
from gmd_ray.pairstore.cost import accelerator_seconds
from gmd_ray.pairstore.schema import rows_dataset
from gmd_ray.pairstore.store import store_url
from gmd_ray.storage import open_filesystem, put

log = logging.getLogger("gmd_ray.generation")

IMAGES = ("lq", "restored", "pseudo_target")


class Candidate(Protocol):
    """An image that may be probed; `plan.PlannedImage` is one."""

    @property
    def file(self) -> ImageFile: ...
    @property
    def size(self) -> str: ...
    @property
    def flops(self) -> int: ...


C = TypeVar("C", bound=Candidate)


@dataclass(frozen=True)
class Probe:
    """Measured costs of the probed images."""

    images: int
    seconds: dict[str, float]
    """Padded size -> median accelerator-seconds of one image."""
    seconds_per_flop: float
    """Accelerator-seconds per FLOP, for sizes that were not probed."""
    compression: float
    """PNG bytes divided by raw bytes."""
    stages: dict[str, float]
    """Stage (restore, project, score) -> median seconds of one actor for an image."""

    def seconds_of(self, size: str, flops: int) -> float:
        """Accelerator-seconds of one image."""
        return self.seconds.get(size, flops * self.seconds_per_flop)


def run_probe(cfg: Config, jobs: Sequence[Candidate], count: int, models: Any = None) -> Probe:
    """Restore, project and score `count` images, spread evenly over the costs. Ray must be initialised.

    One replica of each pool works on them, below `<out>`, so that the workers of a cluster see the place; it is removed
    at the end. The median leaves a slow first batch out, where a size has several.

    Raises:
        DataError: `out` is not a local path, or no image came through.
        GmdError: as `generate`.
    """
    from gmd_ray.generation.run import generate

    if "://" in cfg.out:
        raise DataError(f"out={cfg.out}: a probe needs a folder that every node sees; give such an out= for the plan")
    place = Path(cfg.out) / f"probe-{uuid.uuid4().hex[:8]}"
    picked = pick(jobs, count)
    try:
        copy_photos(picked, place / "photos")
        log.info("probe: %d images through the real stages", len(picked))
        small = probe_settings(cfg, place)
        generate(small, models=models)
        return measure(small, picked)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def pick(jobs: Sequence[C], count: int) -> list[C]:
    """At most `count` images, spread evenly over the costs."""
    ordered = sorted(jobs, key=lambda job: (job.flops, job.file.id))
    count = min(count, len(ordered))
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def copy_photos(jobs: Sequence[Candidate], folder: Path) -> None:
    """Copy the files of some images below a folder, each under its id."""
    for job in jobs:
        put(*open_filesystem(str(folder / job.file.id)), read_file(job.file.uri))


def probe_settings(cfg: Config, place: Path) -> Config:
    """Settings of a run in `<place>/run` over the photos in `<place>/photos`, with one replica of each model."""

    def one(pool: PoolConfig) -> PoolConfig:
        return replace(pool, min=1, max=1, initial=None)

    return replace(
        cfg,
        out=str(place / "run"),
        source=replace(cfg.source, hq=None),  # without source pairs the gate is not checked, which would take time
        target=replace(cfg.target, path=str(place / "photos"), limit=None),
        student=replace(cfg.student, pool=one(cfg.student.pool)),
        teacher=replace(cfg.teacher, pool=one(cfg.teacher.pool)),
        scorer=replace(cfg.scorer, pool=one(cfg.scorer.pool)),
    )


def measure(cfg: Config, picked: Sequence[Candidate]) -> Probe:
    """The costs of images that a run went through.

    Args:
        cfg: settings of that run, as `probe_settings` makes them.
        picked: the images.

    Raises:
        DataError: no image came through.
    """
    jobs = {job.file.id: job for job in picked}
    stages = ("restore", "project", "score")
    kept = IMAGES if cfg.generation.keep_restored else ("lq", "pseudo_target")
    columns = ["id", "status", "error", "width", "height", *kept, *(f"seconds_{stage}" for stage in stages)]
    rows = rows_dataset(store_url(cfg.out)).to_table(columns=columns)
    ok = rows.filter(pc.field("status") == "ok").to_pylist()
    if not ok:
        reasons = sorted({str(reason) for reason in rows["error"].to_pylist()})
        raise DataError(
            f"probe: none of {rows.num_rows} images came through ({reasons[0]}); the run would do no better"
        )
    by_size: dict[str, list[float]] = defaultdict(list)
    flops = taken = raw = packed = 0.0
    for row in ok:
        job = jobs[row["id"]]
        seconds = accelerator_seconds(cfg, {stage: row[f"seconds_{stage}"] for stage in stages})
        by_size[job.size].append(seconds)
        pngs = [row[name] for name in kept]
        raw += sum(3 * math.prod(png_size(png)) for png in pngs)
        packed += sum(len(png) for png in pngs)
    medians = {size: statistics.median(values) for size, values in by_size.items()}
    for row in ok:
        flops, taken = flops + jobs[row["id"]].flops, taken + medians[jobs[row["id"]].size]
    by_stage = {stage: statistics.median(row[f"seconds_{stage}"] for row in ok) for stage in stages}
    return Probe(len(ok), medians, taken / flops, packed / raw, by_stage)

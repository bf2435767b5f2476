"""Before anything is spent: images, forwards, accelerator-hours, wall time, disk and price of a run."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from gmd_ray.config import Config
from gmd_ray.errors import ConfigError, DataError, GmdError
from gmd_ray.generation.watchdog import batch_bound
from gmd_ray.images.listing import ImageFile
from gmd_ray.images.sets.listed import Listed
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.images.sizes import image_sizes
from gmd_ray.pairstore import run_settings
from gmd_ray.pairstore.cost import PLAN_FILE, price
from gmd_ray.pairstore.store import PairStore, store_url
from gmd_ray.planning.probe import Probe
from gmd_ray.students import load_student
from gmd_ray.teachers import compilation_of_run, estimate_teacher, teacher_licence

log = logging.getLogger("gmd_ray")

SIZES_SHOWN = 4


@dataclass(frozen=True)
class PlannedImage:
    """One image to project, as described by its header."""

    file: ImageFile
    lq_pixels: int
    pixels: int
    """Pixels of the pseudo-target."""
    size: str
    """The padded size that the teacher sees; equal sizes cost the same."""
    forwards: int
    flops: int
    replica_bytes: tuple[int, int]
    """See `Plan.replica_bytes`."""


@dataclass(frozen=True)
class Plan:
    """Predicted cost of a run. Hours and price are None if the speed or the price of an accelerator is unknown."""

    images: int
    unreadable: int
    """Files that will become failed rows."""
    sizes: dict[str, int]
    """Padded size -> images, most frequent first."""
    forwards: int
    """Teacher evaluations, of one image or tile each."""
    flops: int
    basis: str
    """Source of the hours: the probe, or the speed that the settings give."""
    accelerators: int
    accelerator_hours: float | None
    wall_hours: float | None
    """Wall time in hours if every teacher is always busy."""
    disk_bytes: int
    disk_measured: bool
    """True if a probe measured the compression; else the figure is an upper bound for uncompressed images."""
    price: float | None
    currency: str
    replica_bytes: tuple[int, int]
    """Memory of one teacher replica on each of its accelerators, for the largest image: with all caches there, and the
    least that the settings allow."""
    teacher_licence: str
    """Licence class of the teacher and where it says so, as `commercial (README.md: license: apache-2.0)`."""
    settings_fingerprint: str
    """Fingerprint of the settings that alter pixels or scores; a run with another one is not the planned run."""
    compilation: str = ""
    """The choice of `generate` to compile the teacher's blocks or not, and why."""
    step_cache: float | None = None
    """The threshold `teacher.step_cache`, with which FLOPs and what follows from them are upper bounds."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        """The plan as lines for a person."""
        shown = list(self.sizes.items())[:SIZES_SHOWN]
        others = len(self.sizes) - len(shown)
        sizes = ", ".join(f"{size}: {n:,}" for size, n in shown) + (f", {others} other sizes" if others else "")
        hours = "give plan.tflops=..., or --probe 16"
        missing = "give plan.price_per_hour=..." if self.accelerator_hours is not None else hours
        fleet = "1 accelerator" if self.accelerators == 1 else f"{self.accelerators} accelerators"
        fastest, least = self.replica_bytes
        bound = "" if self.step_cache is None else f"; at most, since teacher.step_cache={self.step_cache:g} skips some"
        rows = [
            ("images", f"{self.images:,}", f"{self.unreadable:,} more are unreadable" if self.unreadable else ""),
            ("sizes", "", f"{sizes} (as the teacher sees them)"),
            ("forwards", f"{self.forwards:,}", f"{self.flops / 1e15:,.4g} PFLOP in all{bound}"),
            ("accelerator-hours", _figure(self.accelerator_hours), self.basis or hours),
            ("wall time, hours", _figure(self.wall_hours), f"on {fleet}, never waiting"),
            (
                "memory, GB",
                _figure(fastest / 1e9),
                f"of one teacher replica with its caches; {least / 1e9:,.3g} at least",
            ),
            ("compiled teacher", "", self.compilation),
            ("disk, GB", _figure(self.disk_bytes / 1e9), "as the probe's" if self.disk_measured else "at most"),
            (f"cost, {self.currency}", _figure(self.price), "" if self.price is not None else missing),
            ("teacher's licence", "", self.teacher_licence),
        ]
        return "\n".join(f"{name:<18} {value:>12}  {note}".rstrip() for name, value, note in rows)


def survey(cfg: Config, inputs: RunInputs | None = None) -> tuple[list[PlannedImage], int]:
    """Every readable target image with what it will cost, and the number of the others.

    Images are sized from their headers, the teacher is known by its config files, the student by its checkpoint where
    `plan.scale` does not say what it does to a size.

    Raises:
        DataError: no images.
        ModelError: models that cannot be read.
        ConfigError: neither a student nor `plan.scale`.
    """
    files = (inputs or RunInputs()).images(cfg.target.path or "", cfg.target.limit)
    compiled = compilation_of_run(cfg, len(files)).on  # recordings of its forwards take memory
    teacher, scale = estimate_teacher(replace(cfg.teacher, compile=compiled)), _scale(cfg)
    memory = cache(teacher.replica_bytes)
    jobs = []
    for file, size in zip(files, image_sizes(files, cfg.target.max_pixels), strict=True):
        if size is not None:
            height, width = size[0] * scale, size[1] * scale
            cost = teacher.image(height, width)
            tiles = f" x {cost.tiles} tiles" if cost.tiles > 1 else ""
            label = f"{cost.height}x{cost.width}{tiles}"
            jobs.append(
                PlannedImage(
                    file, size[0] * size[1], height * width, label, cost.forwards, cost.flops, memory(height, width)
                )
            )
    if not jobs:
        raise DataError(f"{cfg.target.path}: none of its {len(files)} images can be read")
    return jobs, len(files) - len(jobs)


def make_plan(cfg: Config, jobs: list[PlannedImage], unreadable: int, probe: Probe | None = None) -> Plan:
    """The plan for surveyed images.

    Args:
        probe: measured on some of them; without one the hours are FLOPs / `plan.tflops`, and disk an upper bound.
    """
    fleet = cfg.plan
    share = cfg.teacher.pool.num_gpus or 1
    accelerators = fleet.accelerators or max(1, round(cfg.teacher.pool.max * share))
    flops = sum(job.flops for job in jobs)
    seconds, basis = None, ""
    if probe is not None:
        seconds = sum(probe.seconds_of(job.size, job.flops) for job in jobs)
        basis = f"a probe of {probe.images} images: {seconds / len(jobs):.3g} s an image"
    elif fleet.tflops is not None:
        seconds = flops / (fleet.tflops * 1e12)
        most = "at most " if cfg.teacher.step_cache is not None else ""
        basis = f"the teacher's FLOPs at plan.tflops={fleet.tflops:g}: {most}{seconds / len(jobs):.3g} s an image"
    hours = None if seconds is None else seconds / 3600
    kept = 2 if cfg.generation.keep_restored else 1
    raw = 3 * sum(job.lq_pixels + kept * job.pixels for job in jobs)
    disk = raw if probe is None else round(raw * probe.compression)
    largest = max(jobs, key=lambda job: job.flops)
    return Plan(
        images=len(jobs),
        unreadable=unreadable,
        sizes=dict(Counter(job.size for job in jobs).most_common()),
        forwards=sum(job.forwards for job in jobs),
        flops=flops,
        basis=basis,
        accelerators=accelerators,
        accelerator_hours=hours,
        wall_hours=None if hours is None else hours / accelerators,
        disk_bytes=disk,
        disk_measured=probe is not None,
        price=None if hours is None else price(fleet, hours, disk),
        currency=fleet.currency,
        replica_bytes=largest.replica_bytes,
        teacher_licence=str(teacher_licence(cfg.teacher)),
        settings_fingerprint=run_settings.fingerprint(run_settings.relevant(cfg)),
        compilation=str(compilation_of_run(cfg, len(jobs))),
        step_cache=cfg.teacher.step_cache,
    )


def keep_prediction(cfg: Config, inputs: RunInputs) -> None:
    """Keep a plan in the pair store for a run that says what its accelerators do, and has none of its settings yet.

    The report then sets what was predicted beside what was spent. Without `plan.tflops` there are no hours to predict,
    and the headers of the photos are not read again. A teacher without a cost model has no plan.
    """
    store = PairStore(store_url(cfg.out))
    known = store.read(PLAN_FILE) or {}
    now = run_settings.fingerprint(run_settings.relevant(cfg))
    if cfg.plan.tflops is None or known.get("settings_fingerprint") == now:
        return
    try:
        plan = make_plan(cfg, *survey(cfg, inputs))
    except GmdError as error:
        log.info("no prediction of time and cost: %s", error)
        return
    store.write(PLAN_FILE, plan.as_json())


def later_stages(cfg: Config, listed: Sequence[Listed]) -> list[str]:
    """A line for each stage after the stream, whose hours nobody knows before they are measured: what it works off."""
    runs = ["adapted", *cfg.controls]
    crops = cfg.training.steps * cfg.training.batch_size
    each = f"{cfg.training.steps:,} steps of {cfg.training.batch_size} crops"
    lines = [f"{'fine-tune':<18} {crops * len(runs):>12,}  crops: {len(runs)} x {each} ({', '.join(runs)})"]
    tests = sum(entry.count for entry in listed if entry.role in ("target test", "source test"))
    if tests:
        students = len(runs) + 1
        lines.append(f"{'evaluation':<18} {tests * students:>12,}  images: {tests:,} x {students} students")
    return [*lines, "The hours, memory and cost above are those of Stages 0 to 1b."]


def stall_warning(cfg: Config, plan: Plan) -> str | None:
    """A line where a healthy image, or block of them, may take longer than the run waits for one."""
    if plan.accelerator_hours is None:
        return None
    share = cfg.teacher.pool.num_gpus or 1
    each = plan.accelerator_hours * 3600 / plan.images / share
    bound = batch_bound(cfg.generation).of(1)
    if bound and each >= bound / 2:
        return (
            f"an image takes a teacher about {each:.0f} s, and is given up as one that hangs after "
            f"generation.batch_timeout_s={bound:g}; raise it, and generation.no_progress_timeout_s with it"
        )
    seconds = each * cfg.generation.rows_per_block
    limit = cfg.generation.no_progress_timeout_s
    if seconds < limit / 2:
        return None
    return (
        f"a block of {cfg.generation.rows_per_block} images takes a teacher about {seconds:.0f} s, and "
        f"generation.no_progress_timeout_s={limit} gives up without one; raise it, or lower generation.rows_per_block"
    )


def pool_warnings(cfg: Config, probe: Probe) -> list[str]:
    """A line for each pool beside the teacher's that is too small for it, by what the probe measured."""
    lines: list[str] = []
    if not probe.stages["project"]:  # too fast for its clock: nobody waits for another
        return lines
    for name, pool, stage in (("student", cfg.student.pool, "restore"), ("scorer", cfg.scorer.pool, "score")):
        need = math.ceil(cfg.teacher.pool.max * probe.stages[stage] / probe.stages["project"])
        if pool.max < need:
            lines.append(
                f"{cfg.teacher.pool.max} teachers would wait for the {name}: {probe.stages[stage]:.2g} s an image, the "
                f"teacher takes {probe.stages['project']:.2g}; set {name}.pool.max={need}"
            )
    return lines


def _scale(cfg: Config) -> int:
    if cfg.plan.scale is not None:
        return cfg.plan.scale
    if cfg.student.path is None:
        raise ConfigError("plan needs student.path=... (or plan.scale=..., by how much the student enlarges)")
    return load_student(replace(cfg.student, device="cpu")).scale


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"

"""A small grid of teacher settings on the photos of a preview, and on source pairs, of which the truth is known."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gmd_ray.config import Config
from gmd_ray.errors import GmdError
from gmd_ray.evaluation.differences import Difference, corrected, paired
from gmd_ray.generation import Models, generate
from gmd_ray.images.degradation.degradations import make_degradation
from gmd_ray.images.files.encode import decode_png, encode_png
from gmd_ray.images.sets.pairs import load_pair
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.pairstore.schema import rows_dataset
from gmd_ray.pairstore.store import store_url
from gmd_ray.planning.probe import probe_settings
from gmd_ray.preview.grid import GridPoint
from gmd_ray.quality.calibration.pairs import spread
from gmd_ray.storage import write_bytes

log = logging.getLogger("gmd_ray")


@dataclass(frozen=True)
class Outcome:
    """The result of one point of the grid, made of the photos and of the source pairs."""

    point: GridPoint
    fidelity: float | None
    """Mean PSNR of the projection to the restored photo, in dB; None where no photo came through."""
    score: float | None
    """Mean score of the photos' projections."""
    psnr: float | None
    """Mean PSNR of the source pairs' projections to the truth, in dB; None without pairs."""
    against_restored: Difference | None
    """PSNR to the truth: projection minus restored image, paired by image, and corrected for the number of points."""
    seconds: float | None
    """Median seconds of the teacher for a photo."""
    failed: int
    photos: dict[str, bytes] = field(repr=False)
    """PNG of the projection of each photo by id."""
    sources: dict[str, bytes] = field(repr=False)
    """PNG of the projection of each source pair's input by id."""


@dataclass(frozen=True)
class Sweep:
    """The outcomes of a grid, with what they start from."""

    outcomes: list[Outcome]
    restored_psnr: float | None
    """Mean PSNR of the restored source images to the truth."""
    inputs: dict[str, dict[str, bytes]] = field(repr=False)
    """PNGs `lq` and `restored` of each photo by id."""
    source_inputs: dict[str, dict[str, bytes]] = field(repr=False)
    """PNGs `lq`, `restored` and `hq` of each source pair by id."""

    @property
    def best(self) -> Outcome | None:
        """The outcome nearest to the truth on the source pairs; None without pairs."""
        known = [outcome for outcome in self.outcomes if outcome.psnr is not None]
        return max(known, key=lambda outcome: outcome.psnr or 0.0, default=None)


def run_sweep(
    cfg: Config, place: Path, grid: Sequence[GridPoint], count: int, inputs: RunInputs, models: Models
) -> Sweep:
    """Take photos and source inputs through the real stages once for each point.

    Args:
        cfg: the settings of the run, with `ray.enabled=false`.
        place: folder whose `photos` holds the photos; the inputs of the source pairs are written beside it.
        grid: the points.
        count: number of source pairs at most.
        inputs: folder listings that the run shares.
        models: loaders of the models.

    Raises:
        GmdError: a point whose teacher cannot be loaded; the message names it.
    """
    truths = _write_sources(cfg, place / "source" / "photos", count, inputs)
    outcomes, photos, sources = [], {}, {}
    for i, point in enumerate(grid):
        log.info("sweep, %d of %d: %s", i + 1, len(grid), point.name)
        at = replace(cfg, teacher=point.teacher)
        try:
            of_photos = _rows(at, place, f"grid-{i}", models)
            of_sources = _rows(at, place / "source", f"grid-{i}", models) if truths else {}
        except GmdError as error:
            raise GmdError(f"--sweep, {point.name}: {error}") from error
        photos.update(_start_of(of_photos))
        sources.update(_start_of(of_sources))
        outcomes.append(_outcome(point, of_photos, of_sources, truths))
    together = corrected([outcome.against_restored for outcome in outcomes])
    outcomes = [replace(made, against_restored=found) for made, found in zip(outcomes, together, strict=True)]
    source_inputs = {image: {**pngs, "hq": encode_png(truths[image], 6)} for image, pngs in sources.items()}
    before = [psnr(decode_png(pngs["restored"]), truths[image]) for image, pngs in sources.items()]
    return Sweep(outcomes, statistics.fmean(before) if before else None, photos, source_inputs)


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """PSNR in dB over all values of two images in [0, 1]; 100 for equal ones, so that a mean stays finite."""
    error = float(np.mean((image.astype(np.float64) - reference) ** 2))
    return 100.0 if error < 1e-10 else -10 * math.log10(error)


def _write_sources(cfg: Config, folder: Path, count: int, inputs: RunInputs) -> dict[str, np.ndarray]:
    """Write the inputs of some source pairs as photos; returns their truths by id, empty without source pairs."""
    source = cfg.source
    if source.hq is None:
        return {}
    degradation = make_degradation(source.degradation, source.degradation_args) if source.degradation else None
    truths = {}
    for i, pair in enumerate(spread(inputs.pairs(source.hq, source.lq, source.lq_template), count)):
        lq, hq = load_pair(pair, None if pair.lq else degradation, source.gray, ("preview", cfg.seed, pair.id))
        name = f"{i:03}-{Path(pair.id).stem}.png"  # without folders, and without endings that meet
        write_bytes(str(folder / name), encode_png(lq))
        truths[name] = hq
    return truths


def _rows(cfg: Config, place: Path, name: str, models: Models) -> dict[str, dict[str, Any]]:
    """The rows of one run over `<place>/photos` by id."""
    small = probe_settings(cfg, place)
    small = replace(small, out=str(place / name), generation=replace(small.generation, keep_restored=True))
    generate(small, models=models)
    rows: list[dict[str, Any]] = rows_dataset(store_url(small.out)).to_table().to_pylist()
    return {row["id"]: row for row in sorted(rows, key=lambda row: row["id"])}


def _start_of(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, bytes]]:
    """Input and restored image of each row that came through; they are the same at every point."""
    ok = {image: row for image, row in rows.items() if row["status"] == "ok"}
    return {image: {"lq": row["lq"], "restored": row["restored"]} for image, row in ok.items()}


def _outcome(
    point: GridPoint, photos: dict[str, Any], sources: dict[str, Any], truths: dict[str, np.ndarray]
) -> Outcome:
    ok, pairs = ({i: row for i, row in rows.items() if row["status"] == "ok"} for rows in (photos, sources))
    made = {image: decode_png(row["pseudo_target"]) for image, row in ok.items()}
    fidelity = [psnr(made[image], decode_png(row["restored"])) for image, row in ok.items()]
    after, before = (
        {image: psnr(decode_png(row[name]), truths[image]) for image, row in pairs.items()}
        for name in ("pseudo_target", "restored")
    )
    return Outcome(
        point=point,
        fidelity=statistics.fmean(fidelity) if fidelity else None,
        score=statistics.fmean(row["score"] for row in ok.values()) if ok else None,
        psnr=statistics.fmean(after.values()) if after else None,
        against_restored=paired(after, before),
        seconds=statistics.median(row["seconds_project"] for row in ok.values()) if ok else None,
        failed=len(photos) - len(ok) + len(sources) - len(pairs),
        photos={image: row["pseudo_target"] for image, row in ok.items()},
        sources={image: row["pseudo_target"] for image, row in pairs.items()},
    )

"""Images that cannot be read and pairs whose sizes do not fit, by their headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from gmd_ray.config import Config
from gmd_ray.errors import DataError, GmdError
from gmd_ray.images.degradation.degradations import make_degradation
from gmd_ray.images.headers import LOOKED_AT
from gmd_ray.images.sets.listed import SOURCE, SOURCE_TEST, TARGET, TRUTH
from gmd_ray.images.sets.pairs import PairFile, load_pair
from gmd_ray.planning.data_sets import DataSet, Side
from gmd_ray.planning.findings import NAMED, Findings
from gmd_ray.text import some

_CONFIRMED = 16
"""Pairs that do not fit by their headers, and are decoded to be sure."""


def check_images(found: Findings, cfg: Config, sets: Mapping[str, DataSet], scale: int | None) -> None:
    """Every set: what cannot be read, and what does not fit.

    Args:
        scale: by how much the student enlarges; None where that is not known.
    """
    for role, data in sets.items():
        for side in data.sides:
            if role == TARGET:
                _photos_that_fail(found, side)
            elif not (role == TRUTH and side is data.lq):  # the target's photos, told already
                _unreadable(found, side, paired=len(data.sides) > 1)
        if data.lq is not None and data.hq is not None:
            _sizes(found, cfg, data, scale)
    if {SOURCE, SOURCE_TEST} & sets.keys():
        _degradation(found, cfg, sets, scale)
    if SOURCE in sets:
        _small(found, cfg, sets[SOURCE], scale)


def _photos_that_fail(found: Findings, side: Side) -> None:
    """Target photos: a failed row each, so that the run goes on without them."""
    failed = [f"{file.id}: {h.reason}" for file, h in zip(side.files, side.headers, strict=True) if h.size is None]
    doubtful = sum(header.doubtful for header in side.headers)
    if len(failed) == len(side.files):
        found.error(
            "torn",
            side.key,
            f"{side.key}={side.place}: none of its {len(failed):,} photos can be read ({some(failed)})",
        )
    elif failed:
        found.warn(
            "torn",
            side.key,
            f"{len(failed):,} of {len(side.files):,} target photos cannot be read and will be failed rows "
            f"({some(failed)}){_more(doubtful)}",
        )


def _unreadable(found: Findings, side: Side, *, paired: bool) -> None:
    failed = [f"{file.id}: {h.reason}" for file, h in zip(side.files, side.headers, strict=True) if h.size is None]
    if failed:
        doubtful = sum(header.doubtful for header in side.headers)
        found.error(
            "torn",
            side.key,
            f"{side.key}={side.place}: {len(failed):,} of {len(side.files):,} images cannot be read ({some(failed)})"
            f"{_more(doubtful)}; replace them, or take them out{' with their partners' if paired else ''}",
        )


def _more(doubtful: int) -> str:
    return f", and {doubtful:,} more end like the {LOOKED_AT} that were looked into" if doubtful else ""


def _sizes(found: Findings, cfg: Config, data: DataSet, scale: int | None) -> None:
    """Sizes of both sides of each pair that can be read."""
    assert data.lq is not None
    assert data.hq is not None
    misfits: list[tuple[PairFile, tuple[int, int], tuple[int, int]]] = []
    known = []
    for pair, clean, degraded in zip(data.listed.pairs, data.hq.headers, data.lq.headers, strict=True):
        if clean.size is not None and degraded.size is not None:
            ratio = scale or max(1, clean.size[0] // degraded.size[0])
            known.append(ratio)
            if clean.size != (degraded.size[0] * ratio, degraded.size[1] * ratio):
                misfits.append((pair, degraded.size, clean.size))
    if scale is None and len(set(known)) > 1:
        counted = ", ".join(f"x{ratio}: {n:,}" for ratio, n in Counter(known).most_common(NAMED))
        found.error("sizes", data.hq.key, f"{data.listed.role}: the pairs are of several scales ({counted})")
    if not misfits:
        return
    names = _confirmed(cfg, data.listed.role, misfits, scale)
    if not names:
        return
    wanted = (
        f"{scale} times as large as lq, which is the student's scale"
        if scale
        else "a whole number of times as large as lq"
    )
    found.error(
        "sizes",
        data.hq.key,
        f"{data.hq.key} and {data.lq.key}: {len(misfits):,} of {len(known):,} pairs do not fit ({'; '.join(names)}): "
        f"hq has to be {wanted}; {_advice(data, misfits)}",
    )


def _confirmed(
    cfg: Config,
    role: str,
    misfits: list[tuple[PairFile, tuple[int, int], tuple[int, int]]],
    scale: int | None,
) -> list[str]:
    """Names of some pairs that do not fit when they are decoded either: a header does not tell every turn."""
    names = []
    for pair, lq, hq in misfits[:_CONFIRMED]:
        try:
            load_pair(pair, None, False, (), scale)
        except (DataError, OSError):
            names.append(f"{pair.id}: hq {hq[1]}x{hq[0]}, lq {lq[1]}x{lq[0]}")
        if len(names) == NAMED:
            break
    return names


def _advice(data: DataSet, misfits: list[tuple[PairFile, tuple[int, int], tuple[int, int]]]) -> str:
    assert data.lq is not None
    assert data.hq is not None
    if all(lq[0] >= hq[0] and lq[1] >= hq[1] and lq != hq for _, lq, hq in misfits):
        return f"lq is the larger one: are {data.hq.key} and {data.lq.key} swapped?"
    ratios = {(hq[0] / lq[0], hq[1] / lq[1]) for _, lq, hq in misfits}
    if len(ratios) == 1 and len(misfits) == len(data.listed.pairs):
        (down, across) = ratios.pop()
        if down == across and down == int(down):
            return f"these are of scale {down:g}: give a student.path of that scale, or other pairs"
    return "are the two of one photo? The template of the names says which belong together"


def _degradation(found: Findings, cfg: Config, sets: Mapping[str, DataSet], scale: int | None) -> None:
    """Check that images degraded on the fly come out at the scale of the student, and are large enough for it."""
    made = [data for role, data in sets.items() if role in (SOURCE, SOURCE_TEST) and data.lq is None]
    if not made or not cfg.source.degradation:
        return
    try:
        own = make_degradation(cfg.source.degradation, cfg.source.degradation_args).scale
    except GmdError:
        return  # told when the sets were listed
    if scale is not None and own != scale:
        found.error(
            "sizes",
            "source.degradation",
            f"source.degradation={cfg.source.degradation} shrinks by {own}, and the student enlarges by {scale}: set "
            f"source.degradation_args.scale={scale}",
        )
    for data in made:
        assert data.hq is not None
        small = [
            f"{file.id}: {h.size[1]}x{h.size[0]}"
            for file, h in zip(data.hq.files, data.hq.headers, strict=True)
            if h.size is not None and min(h.size) < own
        ]
        if small:
            found.error(
                "sizes",
                data.hq.key,
                f"{data.hq.key}={data.hq.place}: {len(small):,} images are too small to be degraded at scale {own} "
                f"({some(small)}); take them out",
            )


def _small(found: Findings, cfg: Config, data: DataSet, scale: int | None) -> None:
    """Report images smaller than a training crop, which are padded with their mirror image."""
    side, shrink = (data.lq, 1) if data.lq is not None else (data.hq, scale or 1)
    assert side is not None
    sizes = [header.size for header in side.headers if header.size is not None]
    small = sum(min(size) // shrink < cfg.training.patch for size in sizes)
    if small:
        found.fact(
            "sizes",
            "training.patch",
            f"training.patch={cfg.training.patch}: {small:,} of {len(sizes):,} source images are smaller, and "
            "mirrored to fill a crop",
        )

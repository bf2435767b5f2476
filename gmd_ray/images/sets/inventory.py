"""Listing and counting every folder of images that a run reads, before any expensive work starts."""

from __future__ import annotations

from collections.abc import Callable

from gmd_ray.config import Config
from gmd_ray.config.keys import PUBLISHED
from gmd_ray.errors import ConfigError
from gmd_ray.images.degradation.degradations import make_degradation
from gmd_ray.images.layouts import parse_set
from gmd_ray.images.sets.listed import REPORT, SOURCE, SOURCE_TEST, TARGET, TARGET_TEST, TRUTH, Listed
from gmd_ray.images.sets.pairs import PairFile
from gmd_ray.images.sets.run_inputs import RunInputs


def data_sets(cfg: Config, inputs: RunInputs | None = None) -> dict[str, Callable[[], Listed]]:
    """Return, for each data set in the settings, a function that lists it exactly as the run will.

    The functions raise ConfigError for an unknown published set, a missing data.root, or pairs without an LQ side. They
    raise DataError for a folder that is absent or empty, an incomplete published set, images without partner, and (with
    the supervised control) photos without ground truth.

    Args:
        cfg: the settings.
        inputs: the listings that the run shares; by default new ones.

    Returns:
        role -> function.

    Raises:
        ConfigError: the source degradation is unknown or invalid.
    """
    s, t, e = cfg.source, cfg.target, cfg.evaluation
    run = inputs or RunInputs()
    if s.degradation is not None:
        make_degradation(s.degradation, s.degradation_args)
    sets: dict[str, Callable[[], Listed]] = {}
    if s.hq and (cfg.training.source_ratio > 0 or "source_only" in cfg.controls):
        sets[SOURCE] = lambda: _paired(
            run, SOURCE, str(s.hq), s.lq, s.lq_template, s.limit, _missing_lq(cfg, "source.lq")
        )
    if t.path:
        sets[TARGET] = lambda: _single(run, TARGET, str(t.path), t.limit)
        if cfg.training.supervised_hq and "supervised" in cfg.controls:
            sets[TRUTH] = lambda: _truths(run, cfg)
    if e.target_lq and e.target_hq:
        sets[TARGET_TEST] = lambda: _paired(run, TARGET_TEST, str(e.target_hq), e.target_lq, e.target_template, e.limit)
    elif e.target_lq:
        sets[TARGET_TEST] = lambda: _single(run, TARGET_TEST, str(e.target_lq), e.limit)
    if e.source_hq:
        missing = _missing_lq(cfg, "evaluation.source_lq")
        sets[SOURCE_TEST] = lambda: _paired(
            run, SOURCE_TEST, str(e.source_hq), e.source_lq, e.source_template, e.limit, missing
        )
    if e.pairs_hq:  # the report finds out which targets these belong to; some may have none
        sets[REPORT] = lambda: Listed(REPORT, None, e.pairs_hq, len(run.images(str(e.pairs_hq))))
    return sets


def check_sets(cfg: Config) -> None:
    """Check the names of published sets in the settings, without looking for their images.

    Raises:
        ConfigError: a name is unknown; the message suggests the nearest.
    """
    for key in PUBLISHED:
        section, name = key.split(".")
        path = getattr(getattr(cfg, section), name)
        if path and not path.endswith("@"):
            parse_set(path)


def _single(run: RunInputs, role: str, path: str, limit: int | None) -> Listed:
    photos = tuple(run.images(path, limit))
    return Listed(role, path, None, len(photos), photos=photos)


def _paired(
    run: RunInputs, role: str, hq: str, lq: str | None, template: str, limit: int | None, missing: str | None = None
) -> Listed:
    if not lq and missing is not None:
        raise ConfigError(missing)
    pairs = tuple(run.pairs(hq, lq, template, limit))
    return Listed(role, lq, hq, len(pairs), pairs=pairs)


def _truths(run: RunInputs, cfg: Config) -> Listed:
    photos, truth = run.images(str(cfg.target.path), cfg.target.limit), str(cfg.training.supervised_hq)
    clean = run.truths(truth, [file.id for file in photos], "training.supervised_hq")
    pairs = tuple(PairFile(photo.id, photo.uri, uri) for photo, uri in zip(photos, clean, strict=True))
    return Listed(TRUTH, cfg.target.path, truth, len(pairs), pairs=pairs)


def _missing_lq(cfg: Config, key: str) -> str | None:
    """Return the error message for a missing LQ side; None if a degradation makes it."""
    if cfg.source.degradation:
        return None
    return f"{key} is not set: give it, or source.degradation to make it"

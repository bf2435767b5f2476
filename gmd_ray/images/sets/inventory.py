"""Every folder of images that a run reads, listed and counted before anything heavy starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gmd_ray.config import Config
from gmd_ray.config.keys import PUBLISHED
from gmd_ray.errors import ConfigError
from gmd_ray.images.degradation.degradations import make_degradation
from gmd_ray.images.layouts import parse_set
from gmd_ray.images.listing import ImageFile, list_images
from gmd_ray.images.sets.pairs import PairFile, list_pairs, list_truths

SOURCE, TARGET, TRUTH = "source", "target", "target's truth"
TARGET_TEST, SOURCE_TEST, REPORT = "target test", "source test", "truth for the report"


@dataclass(frozen=True)
class Listed:
    """One data set of a run."""

    role: str
    """source, target, target's truth, target test, source test or truth for the report."""
    lq: str | None
    """Where its low-quality images are; None where they are made from `hq`."""
    hq: str | None
    """Where its clean images are; None where nothing clean is known."""
    count: int
    """Images, or pairs, that the run takes."""
    pairs: tuple[PairFile, ...] = field(default=(), repr=False, compare=False)
    """Of a paired set."""
    photos: tuple[ImageFile, ...] = field(default=(), repr=False, compare=False)
    """Of a set of single images."""

    def __str__(self) -> str:
        what = "images" if self.hq is None or self.role == REPORT else "pairs"
        where = " and ".join(path for path in (self.lq, self.hq) if path)
        return f"{self.role}: {self.count:,} {what}, {where}"


def data_sets(cfg: Config) -> dict[str, Callable[[], Listed]]:
    """Role -> what lists that set as the run itself will, of every set that the settings name.

    Raises:
        ConfigError: a degradation that is not known. What lists a set raises it for a published set that is not known,
            data.root missing, or pairs without their LQ side; and DataError for a folder that is absent or empty, a
            published set that is not whole, or images without their partner or, with the supervised control, without
            ground truth.
    """
    s, t, e = cfg.source, cfg.target, cfg.evaluation
    if s.degradation is not None:
        make_degradation(s.degradation, s.degradation_args)
    sets: dict[str, Callable[[], Listed]] = {}
    if s.hq and (cfg.training.source_ratio > 0 or "source_only" in cfg.controls):
        sets[SOURCE] = lambda: _paired(SOURCE, str(s.hq), s.lq, s.lq_template, s.limit, _missing_lq(cfg, "source.lq"))
    if t.path:
        sets[TARGET] = lambda: _single(TARGET, str(t.path), t.limit)
        if cfg.training.supervised_hq and "supervised" in cfg.controls:
            sets[TRUTH] = lambda: _truths(cfg)
    if e.target_lq and e.target_hq:
        sets[TARGET_TEST] = lambda: _paired(TARGET_TEST, str(e.target_hq), e.target_lq, e.target_template, e.limit)
    elif e.target_lq:
        sets[TARGET_TEST] = lambda: _single(TARGET_TEST, str(e.target_lq), e.limit)
    if e.source_hq:
        missing = _missing_lq(cfg, "evaluation.source_lq")
        sets[SOURCE_TEST] = lambda: _paired(
            SOURCE_TEST, str(e.source_hq), e.source_lq, e.source_template, e.limit, missing
        )
    if e.pairs_hq:  # of which targets, the report sees: some may have none
        sets[REPORT] = lambda: Listed(REPORT, None, e.pairs_hq, len(list_images(str(e.pairs_hq))))
    return sets


def check_sets(cfg: Config) -> None:
    """Refuse a published set that there is not; whether its images are there, its listing says.

    Raises:
        ConfigError: naming the nearest set.
    """
    for key in PUBLISHED:
        section, name = key.split(".")
        path = getattr(getattr(cfg, section), name)
        if path and not path.endswith("@"):
            parse_set(path)


def _single(role: str, path: str, limit: int | None) -> Listed:
    photos = tuple(list_images(path, limit))
    return Listed(role, path, None, len(photos), photos=photos)


def _paired(role: str, hq: str, lq: str | None, template: str, limit: int | None, missing: str | None = None) -> Listed:
    if not lq and missing is not None:
        raise ConfigError(missing)
    pairs = tuple(list_pairs(hq, lq, template, limit))
    return Listed(role, lq, hq, len(pairs), pairs=pairs)


def _truths(cfg: Config) -> Listed:
    photos, truth = list_images(str(cfg.target.path), cfg.target.limit), str(cfg.training.supervised_hq)
    clean = list_truths(truth, [file.id for file in photos], "training.supervised_hq")
    pairs = tuple(PairFile(photo.id, photo.uri, uri) for photo, uri in zip(photos, clean, strict=True))
    return Listed(TRUTH, cfg.target.path, truth, len(pairs), pairs=pairs)


def _missing_lq(cfg: Config, key: str) -> str | None:
    """What is wrong where there is no LQ side."""
    if cfg.source.degradation:
        return None
    return f"{key} is not set: give it, or source.degradation to make it"

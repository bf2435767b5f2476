"""Every folder of images that a run reads, listed and counted before anything heavy starts."""

from __future__ import annotations

from dataclasses import dataclass

from gmd_ray.config import Config
from gmd_ray.config.limits import SETS
from gmd_ray.errors import ConfigError
from gmd_ray.images.degradations import make_degradation
from gmd_ray.images.layouts import parse_set
from gmd_ray.images.listing import list_images
from gmd_ray.images.pairs import list_pairs, list_truths

REPORT = "truth for the report"


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

    def __str__(self) -> str:
        what = "images" if self.hq is None or self.role == REPORT else "pairs"
        where = " and ".join(path for path in (self.lq, self.hq) if path)
        return f"{self.role}: {self.count:,} {what}, {where}"


def inventory(cfg: Config) -> list[Listed]:
    """List the source, the target and the test sets, those that are set, as the run itself will.

    Raises:
        ConfigError: a name or degradation that is not known, data.root missing, or pairs without their LQ side.
        DataError: a folder that is absent or empty, a published set that is not whole, or images without their
            partner; with the supervised control, target photos without ground truth.
    """
    s, t, e = cfg.source, cfg.target, cfg.evaluation
    truth = cfg.training.supervised_hq
    if s.degradation is not None:
        make_degradation(s.degradation, s.degradation_args)
    found = []
    if s.hq and (cfg.training.source_ratio > 0 or "source_only" in cfg.controls):
        _check_lq("source.lq", s.lq, s.degradation)
        found.append(Listed("source", s.lq, s.hq, len(list_pairs(s.hq, s.lq, s.lq_template, s.limit))))
    if t.path:
        photos = [file.id for file in list_images(t.path, t.limit)]
        found.append(Listed("target", t.path, None, len(photos)))
        if truth and "supervised" in cfg.controls:
            count = len(list_truths(truth, photos, "training.supervised_hq"))
            found.append(Listed("target's truth", t.path, truth, count))
    if e.target_lq and e.target_hq:
        pairs = list_pairs(e.target_hq, e.target_lq, e.target_template, e.limit)
        found.append(Listed("target test", e.target_lq, e.target_hq, len(pairs)))
    elif e.target_lq:
        found.append(Listed("target test", e.target_lq, None, len(list_images(e.target_lq, e.limit))))
    if e.source_hq:
        _check_lq("evaluation.source_lq", e.source_lq, s.degradation)
        pairs = list_pairs(e.source_hq, e.source_lq, e.source_template, e.limit)
        found.append(Listed("source test", e.source_lq, e.source_hq, len(pairs)))
    if e.pairs_hq:  # of which targets, the report sees: some may have none
        found.append(Listed(REPORT, None, e.pairs_hq, len(list_images(e.pairs_hq))))
    return found


def check_sets(cfg: Config) -> None:
    """Refuse a published set that there is not; whether its images are there is `inventory`'s to say.

    Raises:
        ConfigError: naming the nearest set.
    """
    for key in SETS:
        section, name = key.split(".")
        path = getattr(getattr(cfg, section), name)
        if path and not path.endswith("@"):
            parse_set(path)


def _check_lq(key: str, lq: str | None, degradation: str | None) -> None:
    if not lq and not degradation:
        raise ConfigError(f"{key} is not set: give it, or source.degradation to make it")

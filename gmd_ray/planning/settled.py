"""Settings that the pair store or a fine-tune of `out` was made with, and now refuses."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

from gmd_ray.config import Config
from gmd_ray.errors import GmdError
from gmd_ray.planning.findings import Findings


def check_store(found: Findings, cfg: Config) -> None:
    """Hold the settings against those that the rows of `<out>/pairs` were made with; a store that is not there is new.

    A student or scorer that lies elsewhere than before, or changed, is loaded and compared with the one behind the
    rows. The teacher, which may be large, is compared by the run. So is a store at which another driver is at work: the
    run waits for it or refuses.
    """
    if "://" not in cfg.out and not os.path.isdir(cfg.out):
        return
    from gmd_ray.generation import settings
    from gmd_ray.generation.resume import known_facts, refuse_other_settings
    from gmd_ray.generation.store import PairStore, store_url

    with found.errors_of("settings", "out"):
        store = PairStore(store_url(cfg.out))
        if not store.exists():
            return
        refuse_other_settings(store, cfg)
        saved = store.read(settings.NAME) or {}
        now = settings.places(cfg)
        for key in settings.moved(saved.get("places", now), now):
            known = known_facts(store, saved.get("models", {})).get(key.partition(".")[0])
            fingerprint = _fingerprint(cfg, key) if known else None
            if known and fingerprint is not None and fingerprint != known["fingerprint"]:
                what = key.partition(".")[0]
                found.error(
                    "settings",
                    key,
                    f"{store.url} was made with another {what}: {key} now gives model {fingerprint}, its rows are of "
                    f"{known['fingerprint']}; give another out=, or the old model",
                )


def _fingerprint(cfg: Config, key: str) -> str | None:
    """Of the model at this place; None for one that is not loaded here, or cannot be, which is told elsewhere."""
    if not (key == "student.path" and cfg.student.path) and not (key == "scorer.path" and cfg.scorer.path):
        return None
    from gmd_ray.quality import load_scorer
    from gmd_ray.students import load_student

    with contextlib.suppress(GmdError):
        if key == "student.path":
            return load_student(replace(cfg.student, device="cpu")).fingerprint
        return load_scorer(replace(cfg.scorer, device="cpu")).fingerprint
    return None


def check_finetunes(found: Findings, cfg: Config, *, generated: bool) -> None:
    """Hold the settings of each fine-tune of the run against those that it was begun or finished with.

    Args:
        generated: Stage 2 comes by itself, so that the pair store has to be finished; else the run makes it first.
    """
    if "://" in cfg.out or not cfg.student.path:
        return
    from gmd_ray.training import refuse_begun
    from gmd_ray.training.plan import make_plan

    for name in ["adapted", *cfg.controls]:
        with found.errors_of("settings", "out"):
            if generated:
                make_plan(cfg, name, None)
            refuse_begun(cfg, name, generated=generated)


def check_pretraining(found: Findings, cfg: Config) -> None:
    """The same for `pretrain`."""
    from gmd_ray.training import refuse_begun_pretraining

    with found.errors_of("settings", "out"):
        refuse_begun_pretraining(cfg)

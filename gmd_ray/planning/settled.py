"""Settings that the pair store or a fine-tune of `out` was made with, and now refuses."""

from __future__ import annotations

import os

from gmd_ray.config import Config
from gmd_ray.planning.findings import Findings


def check_store(found: Findings, cfg: Config) -> None:
    """Hold the settings against those that the rows of `<out>/pairs` were made with; a store that is not there is new.

    A store at which another driver is at work is told by the run, which waits for it or refuses.
    """
    if "://" not in cfg.out and not os.path.isdir(cfg.out):
        return
    from gmd_ray.generation.resume import refuse_other_settings
    from gmd_ray.generation.store import PairStore, store_url

    with found.errors_of("settings", "out"):
        store = PairStore(store_url(cfg.out))
        if store.exists():
            refuse_other_settings(store, cfg)


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

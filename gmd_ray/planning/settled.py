"""Settings that the pair store or a fine-tune of `out` was made with, and now refuses."""

from __future__ import annotations

import os
from pathlib import Path

from gmd_ray.config import Config
from gmd_ray.planning.findings import Findings

_BEGUN = "train/checkpoint_manager_snapshot.json"
"""Below a fine-tune's directory: from here on other settings are refused."""


def check_store(found: Findings, cfg: Config) -> None:
    """Hold the settings against those that the rows of `<out>/pairs` were made with; a store that is not there is new.

    A store at which another driver is at work is told by the run, which waits for it or refuses.
    """
    if "://" not in cfg.out and not os.path.isdir(cfg.out):
        return
    with found.errors_of("settings", "out"):
        from gmd_ray.generation.resume import refuse_other_settings
        from gmd_ray.generation.store import PairStore, store_url

        store = PairStore(store_url(cfg.out))
        if "://" in cfg.out:
            try:
                there = store.exists()
            except OSError as error:
                found.warn("place", "out", f"out={cfg.out}: cannot be looked into ({error})")
                return
        else:
            there = store.exists()
        if there:
            refuse_other_settings(store, cfg)


def check_finetunes(found: Findings, cfg: Config, *, alone: bool) -> None:
    """Hold the settings of each fine-tune of the run against those that it was begun with.

    Args:
        alone: Stage 2 by itself, so that the pair store has to be finished; else the run makes it first, and what a
            finished one gives now is looked at.
    """
    from gmd_ray.training.plan import finetuned_path, make_plan, refuse_other_settings

    for name in ["adapted", *cfg.controls]:
        with found.errors_of("settings", "out"):
            directory = Path(finetuned_path(cfg, name)).parent
            begun = (directory / _BEGUN).is_file()
            finished_store = Path(cfg.out, "pairs", "manifest.json").is_file()
            if alone or (begun and finished_store):
                plan = make_plan(cfg, name, None)
                if begun:
                    refuse_other_settings(plan)

"""Settings that an existing pair store or fine-tune below `out` does not accept."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from gmd_ray.config import Config
from gmd_ray.errors import ConfigError, GmdError, ModelError
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.planning.findings import Findings

if TYPE_CHECKING:
    from gmd_ray.pairstore.store import PairStore


def check_store(found: Findings, cfg: Config) -> None:
    """Compare the settings with those that the rows of `<out>/pairs` were made with.

    A student, or a scorer's directory, that lies elsewhere than before, or changed, is loaded and compared with the one
    behind the rows. Teachers and the scorers of pyiqa are larger, and compared by the run. So is a store at which
    another driver is at work: the run waits for it or refuses.
    """
    if "://" not in cfg.out and not os.path.isdir(cfg.out):
        return
    from gmd_ray.generation.resume import refuse_other_settings, refuse_other_student
    from gmd_ray.pairstore.store import PairStore, store_url

    with found.errors_of("settings", "out"):
        store = PairStore(store_url(cfg.out))
        if not store.exists():
            return
        refuse_other_settings(store, cfg)
        # One that cannot be loaded here is told by `find_scale`, where it is to be told.
        with found.errors_of("settings", "student.path"), contextlib.suppress(ModelError, ConfigError):
            refuse_other_student(store, cfg)
        _refuse_other_scorer(found, cfg, store)


def _refuse_other_scorer(found: Findings, cfg: Config, store: PairStore) -> None:
    from gmd_ray.generation.resume import known_facts
    from gmd_ray.pairstore import run_settings
    from gmd_ray.quality import load_scorer

    if cfg.scorer.path is None:
        return
    saved, now = run_settings.read_settings(store), run_settings.places(cfg)
    known = known_facts(store, saved.models).get("scorer")
    if known is None or "scorer.path" not in run_settings.moved(saved.document.get("places", now), now):
        return
    with contextlib.suppress(GmdError):  # it cannot be loaded, which `check_weights` has told
        fingerprint = load_scorer(replace(cfg.scorer, device="cpu")).fingerprint
        if fingerprint != known["fingerprint"]:
            found.error(
                "settings",
                "scorer.path",
                f"{store.url} was made with another scorer: scorer.path now gives model {fingerprint}, its rows are of "
                f"{known['fingerprint']}; give another out=, or the old model",
            )


def check_finetunes(found: Findings, cfg: Config, *, generated: bool, inputs: RunInputs | None = None) -> None:
    """Compare the settings of each fine-tune with those that it was started with.

    Args:
        generated: Stage 2 comes by itself, so that the pair store has to be finished; else the run makes it first.
        inputs: the listings that the run shares; by default new ones.
    """
    if not cfg.student.path:
        return
    from gmd_ray.training import refuse_begun
    from gmd_ray.training.spec import make_spec

    for name in ["adapted", *cfg.controls]:
        with found.errors_of("settings", "out"):
            if generated:
                make_spec(cfg, name, None, inputs=inputs)
            refuse_begun(cfg, name, generated=generated, inputs=inputs)


def check_pretraining(found: Findings, cfg: Config, inputs: RunInputs | None = None) -> None:
    """Compare the settings of `pretrain` with those that it was started with."""
    from gmd_ray.training import refuse_begun_pretraining

    with found.errors_of("settings", "out"):
        refuse_begun_pretraining(cfg, inputs)

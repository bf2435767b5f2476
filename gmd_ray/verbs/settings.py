"""Settings of a verb, checked before anything heavy is imported."""

from __future__ import annotations

import argparse

from gmd_ray.config import Config
from gmd_ray.config.load import check_out, load_config, require


def load_settings(args: argparse.Namespace, *needs: str) -> Config:
    """Read the settings and check them: their own rules, and that nothing is missing for the verbs in `needs`.

    Raises:
        ConfigError: naming the setting, and how to mend it.
    """
    from gmd_ray.quality import known_metrics

    given = [*args.settings, *(["generation.retry_failed=true"] if getattr(args, "retry_failed", False) else [])]
    cfg = load_config(given, known_metrics=known_metrics)
    for verb in needs:
        require(cfg, verb)
    if needs:
        check_out(cfg, needs[0])
    from gmd_ray.images.sets.inventory import check_sets

    if cfg.source.degradation is not None:
        from gmd_ray.images.degradation.degradations import make_degradation

        make_degradation(cfg.source.degradation, cfg.source.degradation_args)
    check_sets(cfg)
    return cfg

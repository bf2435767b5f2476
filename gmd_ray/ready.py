"""From settings to a run that may begin: the preflight, and then the run directory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gmd_ray.config import Config
from gmd_ray.config.load import check_out, require, save_config
from gmd_ray.errors import ConfigError
from gmd_ray.ray_utils.session import cluster_address

if TYPE_CHECKING:
    from gmd_ray.images.listing import ImageFile
    from gmd_ray.images.sets.inventory import Listed
    from gmd_ray.planning import Findings

ANYWHERE = ("generate", "plan", "encode-prompts")
"""Verbs that write no models and reports, so that `out` may lie at any URL."""


WITHOUT_RAY = ("generate", "plan", "encode-prompts")
"""Verbs that work in their own process with `ray.enabled=false`."""


def check_ray(cfg: Config, verb: str) -> None:
    """Refuse a verb that needs Ray with `ray.enabled=false`.

    Raises:
        ConfigError: naming the verbs that run without it.
    """
    if not cfg.ray.enabled and verb not in WITHOUT_RAY:
        raise ConfigError(f"ray.enabled=false: {verb} needs Ray; `generate` and `plan` run without it")


def target_photos(sets: Sequence[Listed]) -> tuple[ImageFile, ...] | None:
    """Return the target's photos as the preflight listed them (`ready`), so that a run need not list them again."""
    from gmd_ray.images.sets.inventory import TARGET

    return next((listed.photos for listed in sets if listed.role == TARGET), None)


def ready(cfg: Config, verb: str, *, save: bool = True, probes: bool = False) -> list[Listed]:
    """The preflight of a verb and, where nothing stands in its way, its run directory; a refusal leaves no trace.

    Args:
        verb: adapt, generate, finetune, pretrain, evaluate or plan.
        save: leave the resolved settings in the run directory. `generate` does so itself, once the store has not
            refused them.
        probes: a plan that measures some images here first.

    Returns:
        the data sets of the run.

    Raises:
        RefusedError: everything that stands in the way, a line each.
        FetchError: a weight file of the scorer that is missing and cannot be downloaded.
        ConfigError: a verb that needs Ray, with `ray.enabled=false`.
    """
    check_ray(cfg, verb)
    from gmd_ray.planning import Preflight
    from gmd_ray.planning.models import fetch_weights

    flight = Preflight(cfg, verb, joins=joins_cluster(cfg), probes=probes)
    found = flight.run()
    found.refuse()
    if verb != "plan" or probes:
        fetch_weights(flight.weights)
    settle(cfg)
    if flight.undrawn:
        found = flight.after_drawing()
        found.refuse()
    if save:
        save_config(cfg, Path(cfg.out) / "config.yaml")
    return found.sets


def joins_cluster(cfg: Config) -> bool:
    """Whether the run joins a Ray cluster, whose nodes may have what this machine has not; else it starts its own."""
    ray = sys.modules.get("ray")
    return cluster_address(cfg) is not None or (ray is not None and ray.is_initialized())


def settle(cfg: Config) -> None:
    """Make the run directory and the data that the preset asks for."""
    if cfg.prepare == "demo":
        from gmd_ray.demo.prepare import prepare

        prepare(Path(cfg.out) / "world")
    if "://" not in cfg.out:
        Path(cfg.out).mkdir(parents=True, exist_ok=True)


def check(load: Callable[[], Config], verb: str) -> Findings:
    """Everything that the preflight of a verb finds, and what is wrong with its settings; nothing is begun."""
    from gmd_ray.planning import Findings, Preflight

    found = Findings(verb)
    with found.errors_of("config", ""):
        cfg = load()
        with found.errors_of("config", ""):
            require(cfg, verb)
        with found.errors_of("config", "out"):
            check_out(cfg, files=verb not in ANYWHERE)
        with found.errors_of("config", "ray.enabled"):
            check_ray(cfg, verb)
        Preflight(cfg, verb, joins=joins_cluster(cfg)).run(found)
    return found

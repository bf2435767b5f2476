"""Preparing a run: the preflight, and then the run directory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gmd_ray.config import Config
from gmd_ray.config.load import check_out, require, save_config
from gmd_ray.config.places import below
from gmd_ray.errors import ConfigError
from gmd_ray.ray_utils.session import cluster_address

if TYPE_CHECKING:
    from gmd_ray.images.sets.run_inputs import RunInputs
    from gmd_ray.planning import Findings

WITHOUT_RAY = ("ablate", "generate", "finetune", "pretrain", "plan", "encode-prompts")
"""Verbs that work in their own process with `ray.enabled=false`."""


def check_ray(cfg: Config, verb: str) -> None:
    """Refuse a verb that needs Ray with `ray.enabled=false`.

    Raises:
        ConfigError: naming the verbs that run without it.
    """
    if not cfg.ray.enabled and verb not in WITHOUT_RAY:
        raise ConfigError(f"ray.enabled=false: {verb} needs Ray; {', '.join(WITHOUT_RAY)} run without it")


def ready(cfg: Config, verb: str, *, save: bool = True, probes: bool = False) -> RunInputs:
    """Run the preflight of a verb and make its run directory; a refused run leaves no trace.

    Args:
        cfg: the settings.
        verb: adapt, generate, finetune, pretrain, evaluate, plan or ablate.
        save: write the resolved settings to the run directory. `generate` does so itself, after the store has accepted
            them.
        probes: True for a plan that measures some images on this machine first.

    Returns:
        The folders of the run as the preflight listed them, to be handed to its stages.

    Raises:
        RefusedError: the run cannot start; one line per reason.
        FetchError: a weight file of the scorer is missing and cannot be downloaded.
        ConfigError: a verb that needs Ray, with `ray.enabled=false`.
    """
    check_ray(cfg, verb)
    from gmd_ray.planning import Preflight
    from gmd_ray.planning.models import fetch_weights

    flight = Preflight(cfg, verb, joins=joins_cluster(cfg), probes=probes)
    findings = flight.run()
    findings.refuse()
    if verb != "plan" or probes:
        fetch_weights(flight.weights)
    settle(cfg)
    if flight.undrawn:
        findings = flight.after_drawing()
        findings.refuse()
    if save:
        save_config(cfg, below(cfg.out, "config.yaml"))
    flight.inputs.sets = findings.sets
    return flight.inputs


def joins_cluster(cfg: Config) -> bool:
    """Return True if the run joins a Ray cluster, whose nodes may differ from this machine; else it starts Ray here."""
    ray = sys.modules.get("ray")
    return cluster_address(cfg) is not None or (ray is not None and ray.is_initialized())


def settle(cfg: Config) -> None:
    """Make the run directory, and the images of a demo if the preset asks for them."""
    if cfg.prepare == "photos":
        from gmd_ray.demo.photos.prepare import prepare as prepare_photos

        prepare_photos(Path(cfg.out) / "world")
    elif cfg.prepare == "toy":
        from gmd_ray.demo.toy.prepare import prepare as prepare_toy

        prepare_toy(Path(cfg.out) / "world")
    if "://" not in cfg.out:
        Path(cfg.out).mkdir(parents=True, exist_ok=True)


def check(load: Callable[[], Config], verb: str) -> Findings:
    """Collect the findings of a verb's preflight and the errors of its settings, without starting anything."""
    from gmd_ray.planning import Findings, Preflight

    findings = Findings(verb)
    with findings.errors_of("config", ""):
        cfg = load()
        with findings.errors_of("config", ""):
            require(cfg, verb)
        with findings.errors_of("config", "out"):
            check_out(cfg, verb)
        with findings.errors_of("config", "ray.enabled"):
            check_ray(cfg, verb)
        Preflight(cfg, verb, joins=joins_cluster(cfg)).run(findings)
    return findings

"""Rules of what is measured and what promotes: what cannot work is told before hours of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from gmd_ray.config.limits import DATASETS
from gmd_ray.config.schema import Config, TrackingConfig
from gmd_ray.errors import ConfigError, nearest


class MetricFacts(Protocol):
    """What is to be known of a metric by its name; `gmd_ray.quality.catalogue.MetricInfo` is one."""

    @property
    def architecture(self) -> str: ...
    @property
    def needs_reference(self) -> bool: ...
    @property
    def per_image(self) -> bool: ...


def check_judging(cfg: Config, known: Mapping[str, MetricFacts] | None) -> None:
    """Hold `evaluation`, `scorer.metric` and `tracking.gates` against what there is.

    Args:
        known: the metrics by name; None leaves their names unchecked.

    Raises:
        ConfigError: for the first value that breaks a rule.
    """
    students = ("baseline", "adapted", *cfg.controls)
    if not isinstance(cfg.evaluation.online, bool):
        for name in cfg.evaluation.online:
            if name not in students:
                raise ConfigError(f"evaluation.online: no student {name!r}; {nearest(name, students)}")
    for key, names in (("controls", cfg.controls), ("evaluation.metrics", cfg.evaluation.metrics)):
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{key}: {name!r} is named twice")
    _check_gates(cfg)
    if known is not None:
        _check_metrics(cfg, known)


def unmeasured_gate(cfg: Config) -> str | None:
    """Why a gate of `tracking.gates` can never hold, whatever the student; None where each may.

    The gates that are there by default say so when they refuse: whoever has no ground truth need not have asked for
    them.
    """
    e = cfg.evaluation
    tests = {"target": ("target_lq", e.target_lq), "source": ("source_hq", e.source_hq)}
    if not cfg.tracking.enabled or _default_gates(cfg):
        return None
    for i, gate in enumerate(cfg.tracking.gates):
        if gate.metric not in e.metrics:
            return f"tracking.gates[{i}].metric={gate.metric}: never measured; add it to evaluation.metrics"
        key, path = tests[gate.dataset]
        if not path:
            return f"tracking.gates[{i}].dataset={gate.dataset}: nothing to measure; set evaluation.{key}"
    return None


def _default_gates(cfg: Config) -> bool:
    return cfg.tracking.gates == TrackingConfig().gates


def _check_gates(cfg: Config) -> None:
    against = ("baseline", "champion", *cfg.controls)
    for i, gate in enumerate(cfg.tracking.gates):
        key = f"tracking.gates[{i}]"
        if gate.against not in against:
            raise ConfigError(f"{key}.against={gate.against}: {nearest(gate.against, against)}")
        if gate.dataset not in DATASETS:
            raise ConfigError(f"{key}.dataset={gate.dataset}: {nearest(gate.dataset, DATASETS)}")
        if not math.isfinite(gate.min_gain):
            raise ConfigError(f"{key}.min_gain={gate.min_gain}: must be a finite number")


def _check_metrics(cfg: Config, known: Mapping[str, MetricFacts]) -> None:
    e, scorer = cfg.evaluation, cfg.scorer
    wanted = [("scorer.metric", scorer.metric)]
    wanted += [("evaluation.metrics", name) for name in e.metrics]
    wanted += [("evaluation.weights", name) for name in e.weights]
    wanted += [(f"tracking.gates[{i}].metric", gate.metric) for i, gate in enumerate(cfg.tracking.gates)]
    for key, name in wanted:
        if name not in known:
            close = nearest(name, known)
            hint = close if close.startswith("did") else "`gmd-ray ls metrics` lists them"
            raise ConfigError(f"{key}: no metric {name!r}; {hint}")
    for name in e.weights:
        if not known[name].architecture:
            raise ConfigError(f"evaluation.weights.{name}: {name} is a formula and has no weights; leave it out")
    if scorer.path is None and known[scorer.metric].needs_reference:
        raise ConfigError(
            f"scorer.metric={scorer.metric}: needs a ground truth, which target images lack; name a no-reference "
            "metric, e.g. nima"
        )
    if scorer.path is None and not known[scorer.metric].per_image:
        raise ConfigError(f"scorer.metric={scorer.metric}: has no value for a single image; name another, e.g. nima")
    if e.target_lq and not e.target_hq and not _default_gates(cfg):
        for i, gate in enumerate(cfg.tracking.gates):
            if gate.dataset == "target" and known[gate.metric].needs_reference:
                raise ConfigError(
                    f"tracking.gates[{i}].metric={gate.metric}: needs ground truth; set evaluation.target_hq, or name "
                    "a no-reference metric"
                )

"""Rules about the names of metrics, so that a metric that cannot work is refused before hours of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gmd_ray.config.sections.evaluation import TrackingConfig
from gmd_ray.config.sections.run import Config
from gmd_ray.errors import ConfigError, nearest


class MetricFacts(Protocol):
    """The facts about a metric that the rules need; `gmd_ray.quality.catalogue.MetricInfo` has them."""

    @property
    def architecture(self) -> str: ...
    @property
    def needs_reference(self) -> bool: ...
    @property
    def per_image(self) -> bool: ...


def check_metric_names(cfg: Config, known: Mapping[str, MetricFacts]) -> None:
    """Hold the metrics of `evaluation`, `scorer` and `tracking.gates` against those that exist.

    Args:
        known: the metrics by name.

    Raises:
        ConfigError: an unknown name, or a metric that cannot do what it is named for.
    """
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
    if e.target_lq and not e.target_hq and not _default_promotion(cfg):
        for i, gate in enumerate(cfg.tracking.gates):
            if gate.dataset == "target" and known[gate.metric].needs_reference:
                raise ConfigError(
                    f"tracking.gates[{i}].metric={gate.metric}: needs ground truth; set evaluation.target_hq, or name "
                    "a no-reference metric"
                )


def unmeasured_promotion_gate(cfg: Config) -> str | None:
    """The reason why a gate of `tracking.gates` can never hold, whatever the student; None if each may hold.

    The default gates are left out: a user without ground truth need not have asked for them, and they give their own
    reason when they refuse a promotion.
    """
    e = cfg.evaluation
    tests = {"target": ("target_lq", e.target_lq), "source": ("source_hq", e.source_hq)}
    if not cfg.tracking.enabled or _default_promotion(cfg):
        return None
    for i, gate in enumerate(cfg.tracking.gates):
        if gate.metric not in e.metrics:
            return f"tracking.gates[{i}].metric={gate.metric}: never measured; add it to evaluation.metrics"
        key, path = tests[gate.dataset]
        if not path:
            return f"tracking.gates[{i}].dataset={gate.dataset}: nothing to measure; set evaluation.{key}"
    return None


def _default_promotion(cfg: Config) -> bool:
    return cfg.tracking.gates == TrackingConfig().gates

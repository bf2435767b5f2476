"""No-reference gate and quality metrics: PSNR, SSIM and FID of its own, everything else by pyiqa's names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmd_ray.config import ScorerConfig
from gmd_ray.errors import ConfigError
from gmd_ray.quality.catalogue import MIN_SIDE, MetricUnavailable, known_metrics, metric_info
from gmd_ray.quality.protocol import Metric, Scorer, SetMetric
from gmd_ray.quality.weights import Lacking, lacking, scorer_lacks

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "MIN_SIDE",
    "Lacking",
    "Metric",
    "MetricUnavailable",
    "Scorer",
    "SetMetric",
    "compare_sets",
    "known_metrics",
    "lacking",
    "load_metric",
    "load_scorer",
    "load_set_metric",
    "scorer_lacks",
]


def load_set_metric(
    name: str, *, weights: str | None = None, device: str = "auto", crop_border: int = 0
) -> SetMetric | None:
    """`fid`, ready to draw features; None for every other name, which `load_metric` knows.

    Args:
        weights, device, crop_border: see `load_metric`.

    Raises:
        MetricUnavailable: no local weights, or a file that does not fit.
    """
    if name != "fid":
        return None
    from gmd_ray.quality.frechet import load_fid

    return load_fid(weights, device, crop_border)


def compare_sets(name: str, images: np.ndarray, references: np.ndarray) -> float:
    """The value of a set metric from features, (N, D) and (M, D).

    Raises:
        DataError: sets that are too small.
    """
    from gmd_ray.quality.frechet import frechet_distance

    assert name == "fid", name
    return frechet_distance(images, references)


def load_metric(name: str, *, weights: str | None = None, device: str = "auto", crop_border: int = 0) -> Metric:
    """A metric, ready to measure.

    `psnr`, `psnr_y`, `ssim` and `ssim_y` are computed here (RGB, or Y of BT.601 YCbCr); every other name is pyiqa's.

    Args:
        weights: local weight file, used instead of the metric's cache or a download.
        device: auto, cpu, cuda or cuda:N.
        crop_border: pixels cut from each side before a full-reference metric.

    Raises:
        ConfigError: a name, device or border that does not exist.
        MetricUnavailable: what the metric needs cannot be had here; says what, and how to mend it.
    """
    info = metric_info(name, "evaluation.metrics")
    if crop_border < 0:
        raise ConfigError(f"evaluation.crop_border={crop_border}: a number of pixels, at least 0")
    if not info.architecture:
        if weights is not None:
            raise ConfigError(
                f"evaluation.weights.{name}={weights}: {name} is a formula and has no weights; leave it out"
            )
        from gmd_ray.quality.full_reference import FullReference

        return FullReference(name, device, crop_border)
    from gmd_ray.quality.pyiqa_metrics import PyiqaMetric

    return PyiqaMetric(
        name,
        weights=weights,
        device=device,
        crop_border=crop_border if info.needs_reference else 0,
        weights_setting=f"evaluation.weights.{name}",
        device_setting="evaluation.device",
    )


def load_scorer(cfg: ScorerConfig) -> Scorer:
    """The gate that the settings name: a NIMA-form directory (`path`), else a pyiqa no-reference metric.

    Over tiles where `tiles` is set; with `fidelity` set, a `gate.SecondOpinion`, which has a method `fidelity` too.

    Raises:
        ConfigError: no such metric, or one that needs a ground truth.
        ModelError: a directory that is not a NIMA-form scorer.
        MetricUnavailable: what the metric needs cannot be had here.
    """
    scorer = _load_scorer(cfg)
    if not cfg.tiles and cfg.fidelity == "none":
        return scorer
    from gmd_ray.quality.gate import SecondOpinion, TiledScorer

    if cfg.tiles:
        scorer = TiledScorer(scorer, cfg.tiles)
    return scorer if cfg.fidelity == "none" else SecondOpinion(scorer, _load_fidelity(cfg))


def _load_scorer(cfg: ScorerConfig) -> Scorer:
    if cfg.path is not None:
        from gmd_ray.quality.inputs import pick_device
        from gmd_ray.quality.nima import NimaScorer

        return NimaScorer.from_pretrained(cfg.path).to(pick_device(cfg.device, "scorer.device"))
    if metric_info(cfg.metric, "scorer.metric").needs_reference:
        raise ConfigError(
            f"scorer.metric={cfg.metric!r} needs a ground truth, which target images lack; "
            "name a no-reference metric, e.g. nima"
        )
    from gmd_ray.quality.pyiqa_metrics import PyiqaMetric

    return PyiqaMetric(
        cfg.metric,
        weights=cfg.weights,
        device=cfg.device,
        weights_setting="scorer.weights",
        device_setting="scorer.device",
    )


def _load_fidelity(cfg: ScorerConfig) -> Metric:
    if not metric_info(cfg.fidelity, "scorer.fidelity").architecture:
        if cfg.fidelity_weights is not None:
            raise ConfigError(f"scorer.fidelity_weights={cfg.fidelity_weights}: {cfg.fidelity} has none; leave it out")
        from gmd_ray.quality.full_reference import FullReference

        return FullReference(cfg.fidelity, cfg.device)
    from gmd_ray.quality.pyiqa_metrics import PyiqaMetric

    return PyiqaMetric(
        cfg.fidelity,
        weights=cfg.fidelity_weights,
        device=cfg.device,
        weights_setting="scorer.fidelity_weights",
        device_setting="scorer.device",
    )

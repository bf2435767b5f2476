"""Image quality: the scorer that accepts pseudo-targets, and the metrics of the evaluation.

PSNR, SSIM, FID and a small scorer of the NIMA form are implemented here; every other metric is pyiqa's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gmd_ray.config import Config, ScorerConfig
from gmd_ray.errors import ConfigError
from gmd_ray.quality.catalogue import MIN_SIDE, MetricUnavailable, known_metrics, metric_info, metric_variant
from gmd_ray.quality.feature_sets import FeatureSet, frechet_distance
from gmd_ray.quality.missing_weights import (
    MissingWeights,
    fetch_command,
    fidelity_directory,
    missing_scorer_weights,
    missing_weights,
)
from gmd_ray.quality.protocol import Metric, Scorer, SetMetric

if TYPE_CHECKING:
    import numpy as np

    from gmd_ray.images.listing import ImageFile
    from gmd_ray.images.sets.run_inputs import RunInputs
    from gmd_ray.quality.calibration.orders import Order

__all__ = [
    "MIN_SIDE",
    "FeatureSet",
    "Metric",
    "MetricUnavailable",
    "MissingWeights",
    "Scorer",
    "SetMetric",
    "compare_sets",
    "fetch_command",
    "known_metrics",
    "load_metric",
    "load_scorer",
    "load_set_metric",
    "loads_repository",
    "metric_variant",
    "missing_scorer_weights",
    "missing_weights",
    "paired_orders",
    "target_order",
]


def paired_orders(
    cfg: Config, scorer: Scorer, inputs: RunInputs, photos: Sequence[ImageFile], limit: int, seconds: float
) -> list[Order]:
    """Rank clean photos and the same degraded; see `calibration.orders.paired_orders`."""
    from gmd_ray.quality.calibration import orders

    return orders.paired_orders(cfg, scorer, inputs, photos, limit, seconds)


def target_order(scorer: Scorer, rows: Iterable[tuple[np.ndarray, np.ndarray, float]]) -> Order | None:
    """Rank pseudo-targets and the photos that they were made from; see `calibration.orders.target_order`."""
    from gmd_ray.quality.calibration import orders

    return orders.target_order(scorer, rows)


def loads_repository(metric: str) -> bool:
    """Return True for a metric that loads whole repositories of the model hub, some of them of several gigabytes."""
    from gmd_ray.quality.weight_files import REPOSITORIES

    return metric in REPOSITORIES


def load_set_metric(
    name: str,
    *,
    weights: str | None = None,
    directory: str | None = None,
    device: str = "auto",
    crop_border: int = 0,
) -> SetMetric | None:
    """Load a metric that compares sets of images: `fid`.

    Args:
        weights, directory, device, crop_border: see `load_metric`.

    Returns:
        None for every other name; `load_metric` loads those.

    Raises:
        MetricUnavailable: no weights on this machine, or a file of another network.
    """
    if name != "fid":
        return None
    from gmd_ray.quality.frechet import load_fid

    return load_fid(weights, device, crop_border, directory)


def compare_sets(name: str, images: FeatureSet, references: FeatureSet) -> float:
    """Compare two sets of images by their features with the set metric `name`.

    Raises:
        DataError: sets that are too small.
    """
    assert name == "fid", name
    return frechet_distance(images, references)


def load_metric(
    name: str,
    *,
    weights: str | None = None,
    directory: str | None = None,
    device: str = "auto",
    crop_border: int = 0,
) -> Metric:
    """Load a metric from files of this machine; nothing is ever downloaded here (see `quality.fetch`).

    `psnr`, `psnr_y`, `ssim` and `ssim_y` are computed here (RGB, or Y of BT.601 YCbCr); every other name is pyiqa's.

    Args:
        weights: the metric's weight file, or a weights directory; None takes the file from `directory`.
        directory: weights directory as `gmd-ray fetch --to` writes it; None is torch's hub directory.
        device: auto, cpu, cuda or cuda:N.
        crop_border: pixels cut from each side before a full-reference metric.

    Raises:
        ConfigError: a name, device or border that does not exist.
        MetricUnavailable: a file or package that the metric needs is missing; the message says where it goes.
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
        directory=directory,
        device=device,
        crop_border=crop_border if info.needs_reference else 0,
        weights_setting=f"evaluation.weights.{name}",
        device_setting="evaluation.device",
    )


def load_scorer(cfg: ScorerConfig) -> Scorer:
    """Load the scorer that the settings name: a directory of the NIMA form (`path`), else a metric of pyiqa.

    It scores tiles if `tiles` is set. If `fidelity` is set it is a `ScorerWithFidelity`, which has a method `fidelity`.

    Raises:
        ConfigError: no such metric, or one that needs a ground truth.
        ModelError: a directory that does not hold a scorer of the NIMA form.
        MetricUnavailable: a file or package that the metric needs is missing.
    """
    scorer = _load_scorer(cfg)
    if not cfg.tiles and cfg.fidelity == "none":
        return scorer
    from gmd_ray.quality.composed_scorers import ScorerWithFidelity, TiledScorer

    if cfg.tiles:
        scorer = TiledScorer(scorer, cfg.tiles)
    return scorer if cfg.fidelity == "none" else ScorerWithFidelity(scorer, _load_fidelity(cfg))


def _load_scorer(cfg: ScorerConfig) -> Scorer:
    if cfg.path is not None:
        from gmd_ray.devices import choose_device
        from gmd_ray.quality.nima import NimaScorer

        return NimaScorer.from_pretrained(cfg.path).to(choose_device(cfg.device, "scorer.device"))
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
            raise ConfigError(
                f"scorer.fidelity_weights={cfg.fidelity_weights}: {cfg.fidelity} is a formula and has no weights; "
                "leave it out"
            )
        from gmd_ray.quality.full_reference import FullReference

        return FullReference(cfg.fidelity, cfg.device)
    from gmd_ray.quality.pyiqa_metrics import PyiqaMetric

    return PyiqaMetric(
        cfg.fidelity,
        weights=cfg.fidelity_weights,
        directory=fidelity_directory(cfg),
        device=cfg.device,
        weights_setting="scorer.fidelity_weights",
        device_setting="scorer.device",
    )

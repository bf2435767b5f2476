"""Figures of a pair store at the threshold of one cell: how many pairs are accepted, and how near they are to truth."""

from __future__ import annotations

from typing import Any

import numpy as np

from gmd_ray.config import Config
from gmd_ray.errors import DataError
from gmd_ray.images.files.decode import decode_8bit
from gmd_ray.images.files.encode import decode_png
from gmd_ray.images.listing import read_file
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.pairstore.store import PairStore, store_url
from gmd_ray.pairstore.view import StoreView


def pair_figures(cfg: Config, inputs: RunInputs) -> dict[str, Any]:
    """Count the accepted pairs; where `evaluation.pairs_hq` has their truth, measure them against it.

    Returns:
        `generated`, `accepted` and `threshold`; and with truth, as means over the accepted pairs in dB over RGB:
        `pseudo_target` and `restored` (PSNR to the truth), and `fidelity` (PSNR of the pseudo-target to the restored
        image).
    """
    view = StoreView.open(
        PairStore(store_url(cfg.out)), cfg.scorer.threshold, cfg.scorer.fidelity_bound, fidelity=cfg.scorer.fidelity
    )
    ids = sorted(set(view.ids()))
    figures: dict[str, Any] = {
        "generated": len({image for image, _ in view.scores()}),
        "accepted": len(ids),
        "threshold": cfg.scorer.threshold,
    }
    if cfg.evaluation.pairs_hq is None or not ids:
        return figures
    try:
        truths = inputs.truths(cfg.evaluation.pairs_hq, ids, "evaluation.pairs_hq")
    except DataError:  # a part of the photos has no truth: they are shown without it
        return figures
    gaps: dict[str, list[float]] = {"pseudo_target": [], "restored": [], "fidelity": []}
    rows = view.rows_of(ids, ["pseudo_target", "restored"])
    for image, truth in zip(ids, truths, strict=True):
        made, restored = rows[image]["pseudo_target"], rows[image]["restored"]
        pictures = [decode_8bit(read_file(truth)) / 255.0, decode_png(made)]
        pictures += [] if restored is None else [decode_png(restored)]
        if len({picture.shape for picture in pictures}) > 1:
            return figures
        gaps["pseudo_target"].append(_psnr(pictures[1], pictures[0]))
        if restored is not None:
            gaps["restored"].append(_psnr(pictures[2], pictures[0]))
            gaps["fidelity"].append(_psnr(pictures[1], pictures[2]))
    return figures | {name: float(np.mean(values)) for name, values in gaps.items() if values}


def _psnr(image: np.ndarray, other: np.ndarray) -> float:
    """PSNR in dB of two images in [0, 1], at most 100."""
    error = float(np.mean((image.astype(np.float64) - other) ** 2))
    return 100.0 if error < 1e-10 else -10 * float(np.log10(error))

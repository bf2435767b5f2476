"""The order in which a run's scorer puts images whose order is known: a few of each group, in little time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gmd_ray.config import Config
from gmd_ray.images.listing import ImageFile
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.quality.calibration.calibration import about_target, sentence
from gmd_ray.quality.calibration.pairs import (
    enlarged,
    held_out_photos,
    score_image,
    score_pairs,
    source_photos,
    target_view,
)
from gmd_ray.quality.calibration.ranking import Ranking, Verdict, rank
from gmd_ray.quality.protocol import Scorer

LARGEST = 512
"""Longest side of the images, in LQ pixels: a whole photo would take a slow metric a minute on a CPU."""


@dataclass(frozen=True)
class Order:
    """The order of one group of pairs."""

    group: str
    """`source`, `target test` or `target`."""
    pairs: int
    ranking: Ranking
    text: str
    """One line that says it in words."""

    @property
    def verdict(self) -> Verdict:
        return self.ranking.verdict


def paired_orders(
    cfg: Config, scorer: Scorer, inputs: RunInputs, photos: Sequence[ImageFile], limit: int, seconds: float
) -> list[Order]:
    """Score source pairs, and held-out target photos with their ground truth where there are any.

    Args:
        photos: the target photos, whose size the images are cut to, and to at most `LARGEST`.
        limit: the most pairs of each group.
        seconds: time for each group, after which no further pair is begun.

    Raises:
        ConfigError: no source pairs are set.
        DataError: a folder that cannot be listed, or pairs none of which can be scored.
    """
    short, long = (min(side, LARGEST) for side in target_view(cfg, photos))
    orders = []
    for group in (source_photos(cfg, inputs), held_out_photos(cfg, inputs)):
        if group is not None:
            scored = score_pairs(scorer, group, (short, long), limit, seconds=seconds)
            ranking = rank(scored.better, scored.worse, scorer.higher_is_better)
            orders.append(Order(group.name, len(scored.better), ranking, sentence(scored, ranking)))
    return orders


def target_order(scorer: Scorer, rows: Iterable[tuple[np.ndarray, np.ndarray, float]]) -> Order | None:
    """Score photos beside their pseudo-targets; None where there are none of at most `LARGEST` pixels a side.

    Args:
        rows: (photo, pseudo-target, score of the pseudo-target); images are (H, W, 3) in [0, 1].

    Raises:
        DataError: a photo that cannot be scored.
    """
    scores = [
        (score, score_image(scorer, enlarged(photo, pseudo_target.shape[:2])))
        for photo, pseudo_target, score in rows
        if max(photo.shape[:2]) <= LARGEST
    ]
    if not scores:
        return None
    made, before = np.array(scores, np.float32).T
    ranking = rank(made, before, scorer.higher_is_better)
    return Order("target", len(scores), ranking, about_target(ranking))

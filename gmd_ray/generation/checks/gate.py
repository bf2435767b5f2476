"""A check of the gate: a score that prefers degraded photos to clean ones would admit the wrong pairs, unnoticed.

The scorer of an actor is out of reach, so the driver loads one of its own, on the CPU, and scores a few images. It does
so before the stream for photos whose order is known, and after it for pseudo-targets beside the photos that they were
made from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from gmd_ray.config import Config, ScorerConfig
from gmd_ray.errors import GmdError
from gmd_ray.images.listing import ImageFile
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.pairstore.audit.rescore import read_images, scored_ids
from gmd_ray.pairstore.store import PairStore
from gmd_ray.pairstore.thresholds import GATE_CHECK_FILE
from gmd_ray.pairstore.view import StoreView
from gmd_ray.quality import Scorer, loads_repository, paired_orders, target_order
from gmd_ray.text import one_line

log = logging.getLogger("gmd_ray.generation")

IMAGES = 32
"""Pairs of each group that are scored."""
SECONDS = 20.0
"""Time for each group, after which no further pair is begun."""
FEWEST = 16
"""Pairs below which a ranking that cannot be told from chance is not worth a warning."""


class GateCheck:
    """The check of one run.

    Whatever goes wrong in it is logged and ends nothing: the run does not depend on it.

    Args:
        load: loads the scorer, as the actors do.
        inputs: listings that the run shares; by default new ones.
    """

    def __init__(self, cfg: Config, load: Callable[[ScorerConfig], Scorer], inputs: RunInputs | None = None) -> None:
        self._cfg, self._load, self._inputs = cfg, load, inputs or RunInputs()
        self._scorer: Scorer | None = None
        self._found: list[dict[str, Any]] = []

    def before(self, store: PairStore, photos: Sequence[ImageFile]) -> None:
        """Score source pairs, and held-out target photos with their ground truth, and warn of a wrong order.

        Args:
            photos: the target photos, whose size the scored images are cut to.
        """
        scorer_cfg = self._cfg.scorer
        if not self._cfg.source.hq:
            log.info("the gate is not checked: there are no source pairs (source.hq) to score")
            return
        if scorer_cfg.path is None and loads_repository(scorer_cfg.metric):
            log.info("the gate is not checked: %s is too large for this process", scorer_cfg.metric)
            return
        self._guarded(lambda: self._score_pairs(photos), store)

    def after(self, store: PairStore) -> None:
        """Score photos whose pseudo-targets the run has scored, and warn where the photos score better."""
        if self._scorer is not None:
            self._guarded(lambda: self._score_photos(store), store)
            self._scorer = None

    def _guarded(self, work: Callable[[], None], store: PairStore) -> None:
        try:
            work()
            if self._found:
                store.write(GATE_CHECK_FILE, {"checks": self._found})
        except Exception as error:  # noqa: BLE001 -- a scorer of a team's own may raise anything, and the run goes on
            self._scorer = None
            kind = "" if isinstance(error, GmdError) else f"{type(error).__name__}: "
            log.warning("the gate is not checked: %s%s", kind, one_line(error))

    def _score_pairs(self, photos: Sequence[ImageFile]) -> None:
        self._scorer = self._load(replace(self._cfg.scorer, device="cpu", fidelity="none"))
        for order in paired_orders(self._cfg, self._scorer, self._inputs, photos, IMAGES, SECONDS):
            self._tell(order, order.group == "source" and order.pairs >= FEWEST)

    def _score_photos(self, store: PairStore) -> None:
        assert self._scorer is not None
        view = StoreView.open(store, self._cfg.scorer.threshold)
        ids = scored_ids(view)
        some = ids[:: max(1, -(-len(ids) // IMAGES))]
        if order := target_order(self._scorer, read_images(view, some)):
            self._tell(order, False)

    def _tell(self, order: Any, chance: bool) -> None:
        """Log an order and keep it for the report; with `chance`, one that is no better than chance is a warning."""
        bad = order.verdict == "backwards" or (chance and order.verdict == "unclear")
        if bad:
            told = "the gate cannot be trusted: %s; `gmd-ray gate %s --calibrate` has more"
            log.warning(told, order.text, self._cfg.out)
        else:
            log.info("gate: %s (%d pairs)", order.text, order.pairs)
        self._found.append(
            {
                "group": order.group,
                "pairs": order.pairs,
                "share": order.ranking.share,
                "matched": order.ranking.matched,
                "verdict": order.verdict,
                "warning": order.text if bad else "",
            }
        )

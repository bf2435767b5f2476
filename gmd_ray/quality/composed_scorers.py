"""Scorers made of others: the mean over tiles, and a score with a fidelity to the restored image beside it."""

from __future__ import annotations

import torch

from gmd_ray.hashing import short_digest
from gmd_ray.images.tiling import tile_spans
from gmd_ray.quality.protocol import Metric, Scorer


class TiledScorer:
    """The mean of a scorer over squares that cover the image; a `Scorer`.

    NIMA alone sees the centre square of the image, resized to 299 pixels: of a 1280x720 image it ignores 44 %.

    Args:
        tiles: squares along the shorter side. The longer side has as many as cover it, evenly spaced.
    """

    def __init__(self, scorer: Scorer, tiles: int) -> None:
        assert tiles >= 1
        self._scorer, self._tiles = scorer, tiles
        self.higher_is_better = scorer.higher_is_better
        self.fingerprint = short_digest(scorer.fingerprint, f"tiles {tiles}")

    def score(self, images: torch.Tensor) -> torch.Tensor:
        """Score RGB images in [0, 1], (B, 3, H, W); returns float32 (B,).

        Raises:
            DataError: squares that the scorer cannot measure, e.g. because they are too small for it.
        """
        side = -(-min(images.shape[-2:]) // self._tiles)
        rows, columns = ([start for start, _ in tile_spans(length, side, 0)] for length in images.shape[-2:])
        squares = [images[..., y : y + side, x : x + side] for y in rows for x in columns]
        return torch.stack([self._scorer.score(square) for square in squares]).mean(0)


class ScorerWithFidelity:
    """A scorer that also measures how close a pseudo-target stayed to the student's restored image; a `Scorer`.

    Args:
        metric: a metric that takes a reference. It sees whole images, even if the scorer sees tiles.
    """

    def __init__(self, scorer: Scorer, metric: Metric) -> None:
        self._scorer, self._metric = scorer, metric
        self.higher_is_better = scorer.higher_is_better
        self.fingerprint = short_digest(scorer.fingerprint, metric.name, getattr(metric, "fingerprint", ""))

    def score(self, images: torch.Tensor) -> torch.Tensor:
        """Score RGB images in [0, 1], (B, 3, H, W), with the scorer alone; returns float32 (B,)."""
        return self._scorer.score(images)

    def fidelity(self, pseudo_targets: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
        """Measure pseudo-targets against restored images, one image at a time.

        Args:
            pseudo_targets, restored: RGB in [0, 1], both (B, 3, H, W).

        Returns:
            float32 (B,), on the metric's own scale.

        Raises:
            DataError: images that the metric cannot measure, e.g. smaller than SSIM's window of 11 pixels.
        """
        values = [self._metric(image, reference) for image, reference in zip(pseudo_targets, restored, strict=True)]
        return torch.tensor(values, dtype=torch.float32)

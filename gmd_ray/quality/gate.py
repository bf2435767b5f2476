"""What the gate can do beyond one score of the whole image: score by tiles, and ask for a second opinion."""

from __future__ import annotations

import torch

from gmd_ray.hashing import short_digest
from gmd_ray.images.tiling import tile_spans
from gmd_ray.quality.protocol import Metric, Scorer


class TiledScorer:
    """The mean of a scorer over squares that cover the image; a `Scorer`.

    NIMA sees the centre square of the image, resized to 299 pixels: of 1280x720 the outer 44 % count for nothing
    (restoration.md 3.3).

    Args:
        tiles: squares along the shorter side; the longer one has as many as cover it, evenly spaced.
    """

    def __init__(self, scorer: Scorer, tiles: int) -> None:
        assert tiles >= 1
        self._scorer, self._tiles = scorer, tiles
        self.higher_is_better = scorer.higher_is_better
        self.fingerprint = short_digest(scorer.fingerprint, f"tiles {tiles}")

    def score(self, images: torch.Tensor) -> torch.Tensor:
        """RGB in [0, 1], (B, 3, H, W) -> (B,) float32. Raises as the scorer does for its smallest square."""
        side = -(-min(images.shape[-2:]) // self._tiles)
        rows, columns = ([start for start, _ in tile_spans(length, side, 0)] for length in images.shape[-2:])
        squares = [images[..., y : y + side, x : x + side] for y in rows for x in columns]
        return torch.stack([self._scorer.score(square) for square in squares]).mean(0)


class SecondOpinion:
    """A scorer, and how close the pseudo-target stayed to what the student restored; a `Scorer`.

    Args:
        metric: one that takes a reference; whole images, whatever the tiles of the score.
    """

    def __init__(self, scorer: Scorer, metric: Metric) -> None:
        self._scorer, self._metric = scorer, metric
        self.higher_is_better = scorer.higher_is_better
        self.fingerprint = short_digest(scorer.fingerprint, metric.name, getattr(metric, "fingerprint", ""))

    def score(self, images: torch.Tensor) -> torch.Tensor:
        return self._scorer.score(images)

    def fidelity(self, pseudo_targets: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
        """RGB in [0, 1], both (B, 3, H, W) -> (B,) float32 on the metric's scale, one image at a time.

        Raises:
            DataError: images that the metric cannot measure, e.g. below SSIM's 11 pixels.
        """
        values = [self._metric(image, reference) for image, reference in zip(pseudo_targets, restored, strict=True)]
        return torch.tensor(values, dtype=torch.float32)

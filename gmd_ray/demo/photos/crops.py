"""Batches of crops for the teacher: clean or generically degraded, with the number of their prompt."""

from __future__ import annotations

import torch

from gmd_ray.demo.photos.degrade import GenericDegradation, gaussian_blur
from gmd_ray.demo.photos.draws import Draws

REGION = 80
"""Side of the region that is degraded. The crop is cut out of it, so that blur and JPEG see what lies beyond."""


class LabelledCrops:
    """Crops of tiles, drawn with one generator."""

    def __init__(self, tiles: torch.Tensor, crop: int, generator: torch.Generator) -> None:
        """
        Args:
            tiles: uint8 RGB, (N, side, side, 3), on the device of the generator; side at least 80.
            crop: side of the crops, at most 80.
        """
        self._tiles, self._crop = tiles, crop
        self._draws = Draws(generator)
        self._degrade = GenericDegradation(self._draws)

    @torch.no_grad()
    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a batch.

        Returns:
            Pixels in [-1, 1], (size, 3, crop, crop), and the number of each image's prompt in PROMPTS, (size,).
        """
        draws = self._draws
        x = self.regions(size)
        clean = draws.unit(size) < 0.5
        x = torch.where(clean.view(size, 1, 1, 1), x, self._degrade(x))
        labels = torch.where(draws.unit(size) < 0.2, 0, torch.where(clean, 1, 2))
        top, left = (int(draws.below(REGION - self._crop + 1)) for _ in range(2))
        return x[:, :, top : top + self._crop, left : left + self._crop] * 2 - 1, labels

    def regions(self, size: int) -> torch.Tensor:
        """Draw regions, flipped and transposed, in [0, 1], (size, 3, 80, 80).

        Softness, exposure and saturation vary alike for both classes, so that noise and compression alone tell `hq`
        from `lq`.
        """
        draws, (count, side) = self._draws, self._tiles.shape[:2]
        along = torch.arange(REGION, device=draws.device)
        tile = draws.below(count, size)
        y, x = (
            draws.below(side - REGION + 1, size, 1) + torch.where(draws.unit(size, 1) < 0.5, along, REGION - 1 - along)
            for _ in range(2)
        )
        image = self._tiles[tile[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2).float() / 255
        half = size // 2
        image = torch.cat([image[:half], image[half:].transpose(2, 3)])
        soft = draws.chance(size, 0.45)
        image = gaussian_blur(
            image, torch.where(soft, draws.uniform(size, 0.2, 1.3), torch.zeros(1, device=image.device))
        )
        changed = draws.chance(size, 0.5)
        look = image.clamp(1e-4, 1) ** draws.uniform(size, 0.7, 1.6) * draws.uniform(size, 0.5, 1.1)
        gray = look.mean(1, keepdim=True)
        look = gray + (look - gray) * draws.uniform(size, 0.5, 1.2)
        return torch.where(changed, look, image).clamp(0, 1)

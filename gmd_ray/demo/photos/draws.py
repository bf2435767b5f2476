"""Random numbers for batches of images, from one generator on the device that the images are on."""

from __future__ import annotations

import math

import torch


class Draws:
    """Random numbers of one generator. Each sample of a batch has its own, in a shape that broadcasts over images.

    The order of the draws is part of a recipe: another order gives other training data for the same seed.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.device = generator.device

    def unit(self, *shape: int) -> torch.Tensor:
        """Uniform numbers in [0, 1)."""
        return torch.rand(shape, generator=self.generator, device=self.device)

    def uniform(self, batch: int, low: float, high: float) -> torch.Tensor:
        """Uniform numbers in [low, high), (batch, 1, 1, 1)."""
        return low + (high - low) * self.unit(batch, 1, 1, 1)

    def log_uniform(self, batch: int, low: float, high: float) -> torch.Tensor:
        """Numbers in [low, high) whose logarithm is uniform, (batch, 1, 1, 1)."""
        return torch.exp(self.uniform(batch, math.log(low), math.log(high)))

    def chance(self, batch: int, probability: float) -> torch.Tensor:
        """Events of that probability, bool (batch, 1, 1, 1)."""
        return self.unit(batch, 1, 1, 1) < probability

    def below(self, end: int, *shape: int) -> torch.Tensor:
        """Whole numbers from 0 to `end` - 1."""
        return torch.randint(end, shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def normal_like(self, x: torch.Tensor) -> torch.Tensor:
        """Standard normal numbers of the shape and the memory layout of `x`, in whose order they are drawn."""
        return torch.empty_like(x).normal_(generator=self.generator)

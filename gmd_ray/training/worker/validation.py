"""Validation on held-out source pairs during a fine-tune."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from gmd_ray.config import SourceConfig
from gmd_ray.errors import DataError
from gmd_ray.images.degradation.degradations import make_degradation
from gmd_ray.images.files.encode import to_tensor
from gmd_ray.images.sets.pairs import PairFile, load_pair
from gmd_ray.students import Student
from gmd_ray.training.worker.parallel import world_size


class Validation:
    """Mean PSNR over whole images, which the workers share out.

    Args:
        pairs: held-out source pairs; those without an LQ file are degraded as the source is, the same way each time.
        source: how the source is read and degraded.
        rank: this worker takes the images rank, rank + world_size, ...
        world_size: number of shares. Under FSDP rank is 0 and world_size 1 on every worker: all of them restore every
            image, since they gather the weights together.
    """

    def __init__(self, pairs: Sequence[PairFile], source: SourceConfig, rank: int, world_size: int) -> None:
        self._pairs, self._source, self._rank, self._world_size = pairs, source, rank, world_size
        made = any(pair.lq is None for pair in pairs)
        self._degradation = make_degradation(source.degradation or "", source.degradation_args) if made else None

    def __call__(self, student: Student, device: torch.device) -> float:
        """The PSNR of the student in dB, over RGB and the full range. Every worker must call this.

        Raises:
            DataError: an image cannot be read; the message names it.
        """
        sums = torch.zeros(2, dtype=torch.float64)
        failure: DataError | None = None
        try:
            for pair in self._pairs[self._rank :: self._world_size]:
                sums += self._score(pair, student, device)
        except DataError as error:
            failure = error  # raised after the sum, which the other workers wait for
        if world_size() > 1:  # under FSDP too: all workers must decide by the same score
            sums = sums.to(device)
            dist.all_reduce(sums)
        if failure is not None:
            raise failure
        return float(sums[0] / sums[1])

    def _score(self, pair: PairFile, student: Student, device: torch.device) -> torch.Tensor:
        """The PSNR of an image in dB, and 1 for the count: shape (2,)."""
        images = load_pair(pair, self._degradation, self._source.gray, ("validation", pair.id), student.scale)
        lq, hq = (to_tensor([image]) for image in images)
        restored = student.restore(lq.to(device), [pair.id]).cpu()
        mse = (restored.double() - hq.double()).square().mean().clamp_min(1e-10)
        return torch.stack([-10 * mse.log10(), torch.ones_like(mse)])

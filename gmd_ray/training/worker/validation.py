"""A look at held-out source pairs while a fine-tune runs."""

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
    """Mean PSNR over whole images, dealt to the workers.

    Args:
        pairs: held-out source pairs; those without an LQ file are degraded as the source is, the same each time.
        source: how the source is read and degraded.
        rank, world_size: which of the images are this worker's. Under FSDP every worker restores every image (0 of 1),
            since they gather the weights together.
    """

    def __init__(self, pairs: Sequence[PairFile], source: SourceConfig, rank: int, world_size: int) -> None:
        self._pairs, self._source, self._rank, self._world_size = pairs, source, rank, world_size
        made = any(pair.lq is None for pair in pairs)
        self._degradation = make_degradation(source.degradation or "", source.degradation_args) if made else None

    def __call__(self, student: Student, device: torch.device) -> float:
        """PSNR in dB of the student as it is; every worker has to call it.

        Raises:
            DataError: naming an image that cannot be read.
        """
        sums = torch.zeros(2, dtype=torch.float64)
        failure: DataError | None = None
        try:
            for pair in self._pairs[self._rank :: self._world_size]:
                sums += self._score(pair, student, device)
        except DataError as error:
            failure = error  # raised once the others, who wait for the sum, have it
        if world_size() > 1:  # under FSDP too: what is decided by the score must be decided alike
            sums = sums.to(device)
            dist.all_reduce(sums)
        if failure is not None:
            raise failure
        return float(sums[0] / sums[1])

    def _score(self, pair: PairFile, student: Student, device: torch.device) -> torch.Tensor:
        """(PSNR in dB, 1) of an image."""
        images = load_pair(pair, self._degradation, self._source.gray, ("validation", pair.id), student.scale)
        lq, hq = (to_tensor([image]) for image in images)
        restored = student.restore(lq.to(device), [pair.id]).cpu()
        mse = (restored.double() - hq.double()).square().mean().clamp_min(1e-10)
        return torch.stack([-10 * mse.log10(), torch.ones_like(mse)])

"""A teacher replica on several GPUs, as one `Teacher`. See docs/decisions.md, "Several GPUs"."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError
from gmd_ray.teachers import load_rank
from gmd_ray.teachers.multi_gpu.process_group import TIMEOUT_S, RankGroup
from gmd_ray.teachers.protocol import Teacher


class ShardedTeacher:
    """`cfg.gpus_per_replica` processes that each run the settings' teacher with their share of its transformer.

    Results equal those of a single process up to rounding, below 1e-5 in float32; in bfloat16, sums over ranks are
    rounded once more. So the fingerprint is the same as well. The process that makes this object drives the ranks and
    is not one of them.
    """

    def __init__(self, cfg: TeacherConfig, *, timeout_s: float = TIMEOUT_S) -> None:
        """Start the ranks and load the model.

        Args:
            timeout_s: see `process_group.TIMEOUT_S`.

        Raises:
            ConfigError: there are fewer visible GPUs than ranks, or settings that the model cannot meet.
            ModelError: the weights cannot be loaded.
            ReplicaLostError: a rank died while it loaded its share.
        """
        count = cfg.gpus_per_replica
        cuda = cfg.device != "cpu" and torch.cuda.is_available()
        if cuda and torch.cuda.device_count() < count:
            raise ConfigError(
                f"teacher.gpus_per_replica={count}: this process sees {torch.cuda.device_count()} GPUs; "
                f"set teacher.pool.num_gpus={count}"
            )
        threads = max(1, int(cfg.pool.num_cpus) // count)
        self._start = partial(RankGroup, partial(_load, cfg), count, cuda=cuda, threads=threads, timeout_s=timeout_s)
        self._ranks = self._start()
        self.fingerprint: str
        self.batch_multiple: int
        self.fingerprint, self.batch_multiple = self._ranks.call(_facts)

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """Project images: float32 RGB in [0, 1], (B, 3, H, W), any H and W -> the same shape, on the CPU.

        After an error the ranks have ended, and the next call starts them again.

        Raises:
            ReplicaLostError: a rank died, or did not answer in time.
            RuntimeError: any other error of a rank.
        """
        if self._ranks.closed:
            self._ranks = self._start()
        return torch.from_numpy(self._ranks.call(_project, restored.cpu().numpy(), list(ids)))

    @property
    def pids(self) -> list[int | None]:
        """Process ids of the ranks, in order."""
        return self._ranks.pids

    def close(self) -> None:
        """End the ranks."""
        self._ranks.close()


def _project(teacher: Teacher, restored: np.ndarray, ids: list[str]) -> np.ndarray:
    return teacher.project(torch.from_numpy(restored), ids).numpy()


def _load(cfg: TeacherConfig) -> Teacher:
    teacher = load_rank(cfg)
    if getattr(teacher, "ranks", 1) != cfg.gpus_per_replica:
        raise ConfigError(
            f"teacher.gpus_per_replica={cfg.gpus_per_replica}: {type(teacher).__name__} cannot be shared; set it to 1"
        )
    return teacher


def _facts(teacher: Teacher) -> tuple[str, int]:
    """Fingerprint and `batch_multiple`, from which the driver knows a model that it does not have."""
    return teacher.fingerprint, getattr(teacher, "batch_multiple", 1)

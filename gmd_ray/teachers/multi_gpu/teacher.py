"""A teacher replica of several ranks, as one `Teacher` (teacher.md 5)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError
from gmd_ray.teachers import load_rank
from gmd_ray.teachers.multi_gpu.process_group import TIMEOUT_S, Ranks
from gmd_ray.teachers.protocol import Teacher


class ShardedTeacher:
    """`cfg.gpus_per_replica` ranks that each run the settings' teacher with their share of its transformer.

    Results are those of one rank up to rounding, below 1e-5 in float32; in bfloat16 sums over ranks are rounded once
    more. So the fingerprint is the same too. The process that makes it drives the ranks, and is none of them.
    """

    def __init__(self, cfg: TeacherConfig, *, timeout_s: float = TIMEOUT_S) -> None:
        """Start the ranks and load.

        Args:
            timeout_s: longest wait of ranks for each other.

        Raises:
            ConfigError: fewer visible GPUs than ranks, or settings that the model cannot meet.
            ModelError: weights that cannot be loaded.
            ReplicaLostError: a rank that died while it loaded its share.
        """
        count = cfg.gpus_per_replica
        cuda = cfg.device != "cpu" and torch.cuda.is_available()
        if cuda and torch.cuda.device_count() < count:
            raise ConfigError(
                f"teacher.gpus_per_replica={count}: this process sees {torch.cuda.device_count()} GPUs; "
                f"set teacher.pool.num_gpus={count}"
            )
        threads = max(1, int(cfg.pool.num_cpus) // count)
        self._start = partial(Ranks, partial(_load, cfg), count, cuda=cuda, threads=threads, timeout_s=timeout_s)
        self._ranks = self._start()
        self.fingerprint: str
        self.batch_multiple: int
        self.fingerprint, self.batch_multiple = self._ranks.call(_facts)

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """float32 RGB in [0, 1], (B, 3, H, W), any H and W, -> the same shape.

        After an error the ranks are started anew, by the next call.

        Raises:
            ReplicaLostError: a rank died, or no longer answers.
            RuntimeError: any other error of a rank.
        """
        if self._ranks.closed:
            self._ranks = self._start()
        return torch.from_numpy(self._ranks.call(_project, restored.cpu().numpy(), list(ids)))

    @property
    def pids(self) -> list[int | None]:
        """Processes of the ranks, in order."""
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
    return teacher.fingerprint, getattr(teacher, "batch_multiple", 1)

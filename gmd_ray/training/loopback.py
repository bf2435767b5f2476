"""The meeting of the workers of a fine-tune when all of them are on this machine; `meeting` chooses it.

PyTorch's own way is a TCPStore, which listens on all interfaces and asks nobody for a token. Where every node of the
Ray cluster has a loopback address, as in a private session, they meet in a file instead, and Gloo and NCCL talk over
the loopback interface.

Importing this module fails on a version of Ray that has other private names.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend


class LoopbackConfig(TorchConfig):
    """A process group that opens no port to other machines."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _FileMeeting


class _FileMeeting(_TorchBackend):
    _file: str | None = None

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Initialise the process group, as Ray's method does, with another place to meet."""
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        self._file = str(Path(tempfile.gettempdir(), f"gmd-ranks-{uuid.uuid4().hex}"))
        worker_group.execute(_prefer_loopback)
        worker_group.execute(_set_torch_distributed_env_vars)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    _setup_torch_process_group,
                    backend=backend_config.backend or ("nccl" if gpus else "gloo"),
                    world_rank=rank,
                    world_size=len(worker_group),
                    init_method=f"file://{self._file}",
                    timeout_s=backend_config.timeout_s,
                )
                for rank in range(len(worker_group))
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_shutdown(worker_group, backend_config)
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._file)


def _prefer_loopback() -> None:
    """Let Gloo and NCCL use the loopback interface, unless the user has named another one."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")

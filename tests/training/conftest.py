"""Training in the process of the test, for tests whose subject is not Ray."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import ray.train
from pyarrow.fs import copy_files
from ray.train import Checkpoint, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.context import StorageContext
from ray.train.v2._internal.execution.training_report import _TrainingReport

from gmd_ray.progress import Recorder
from gmd_ray.ray_utils.remote_errors import raise_if_error
from gmd_ray.training.driver import run_config
from gmd_ray.training.run_files import ray_storage
from gmd_ray.training.spec import TrainingSpec
from gmd_ray.training.worker.loop import train


def fit_in_process(spec: TrainingSpec, label: str, recorder: Recorder) -> int | None:
    """Do what `driver.fit` does for one worker, without Ray processes.

    The loop, the curve, the settings of Ray Train and its management of checkpoints (the snapshot, deletion, the choice
    of the one to resume from) are the real ones. Only the transport between worker and controller is replaced.
    """
    config = run_config(spec, recorder)
    storage = StorageContext(**ray_storage(spec.directory), experiment_dir_name=config.name)
    manager = CheckpointManager(config.checkpoint_config, storage)

    async def register(checkpoint: Checkpoint, metrics: dict[str, Any]) -> None:
        manager.register_checkpoint(_TrainingReport(checkpoint, metrics, validation=False))

    def report(metrics: dict[str, Any], checkpoint: Any = None, checkpoint_dir_name: str | None = None) -> None:
        if checkpoint is not None:
            path = storage.build_checkpoint_path_from_name(checkpoint_dir_name)
            storage.storage_filesystem.create_dir(path, recursive=True)
            copy_files(checkpoint.path, path, destination_filesystem=storage.storage_filesystem)
            asyncio.run(register(Checkpoint(path, storage.storage_filesystem), metrics))
        for callback in config.callbacks:
            callback.after_report(None, [metrics], checkpoint)

    latest = manager.latest_checkpoint_result
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray.train, "report", report)
        patch.setattr(ray.train, "get_checkpoint", lambda: latest and latest.checkpoint)
        loop = TorchTrainer(train, train_loop_config={"spec": spec}, scaling_config=ScalingConfig(num_workers=0))
        return raise_if_error(loop.fit().return_value)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`finetune` and `pretrain` train in this process."""
    monkeypatch.setattr("gmd_ray.training.driver.fit", fit_in_process)

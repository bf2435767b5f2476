"""A fine-tune in the process of the caller, with Ray Train's local mode (`ray.enabled=false`)."""

from __future__ import annotations

from gmd_ray.training.run_files import ray_storage
from gmd_ray.training.spec import TrainingSpec


def fit_in_process(spec: TrainingSpec) -> int | None:
    """Train with the loop that Ray Train's workers run, without any Ray process.

    The weights are those of a run with one worker. What Ray Train adds is absent: nothing is resumed from a checkpoint,
    no curve is written, and a crash ends the caller.

    Returns:
        The step that it was resumed from: always None.

    Raises:
        GmdError: the error that the loop returned.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from gmd_ray.ray_utils.remote_errors import raise_if_error
    from gmd_ray.training.worker.loop import train

    trainer = TorchTrainer(
        train,
        train_loop_config={"spec": spec},
        scaling_config=ScalingConfig(num_workers=0, use_gpu=spec.cfg.training.use_gpu),
        run_config=RunConfig(name="train", **ray_storage(spec.directory)),
    )
    return raise_if_error(trainer.fit().return_value)

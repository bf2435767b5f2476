"""Ray Train as a fine-tune uses it: started, watched, and stopped at any moment."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.train import CheckpointConfig, FailureConfig, Result, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from gmd_ray.errors import GmdError
from gmd_ray.progress import Recorder
from gmd_ray.training.curve import CurveKeeper, CurveWatcher, described, root_cause
from gmd_ray.training.resources import check_resources, waiting_for, worker_resources
from gmd_ray.training.run_files import CURVE, SCORE, read_curve
from gmd_ray.training.spec import TrainingSpec

log = logging.getLogger("gmd_ray.training")

ABORT_S = 2.0
"""How long Ray Train may take to end its workers in order. It cannot while they start, and a job stop waits for 3 s."""

EXIT_CODE = 143
"""128 + SIGTERM, as shells have it."""

_ENVIRONMENT = {
    # Importing a student's libraries takes tens of seconds on a busy node; Ray's own limit is 60.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    # The controller commits checkpoints, and sees that the workers have finished, when it polls: every 2 s otherwise.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
}


def fit(spec: TrainingSpec, label: str, recorder: Recorder) -> int | None:
    """Run Ray Train to the end; the step of the last checkpoint that it went on from, if any.

    Raises:
        ConfigError: workers that this cluster can never hold.
        GmdError: what the workers returned, or how they died.
        KeyboardInterrupt: on Ctrl-C, when the workers have ended.
        SystemExit: on SIGTERM, likewise.
    """
    _set_environment(spec)
    check_resources(spec.cfg)
    cfg = spec.cfg.training
    curve = Path(spec.directory, CURVE)
    points = read_curve(curve)
    trainer = _Trainer(
        _train,
        # What the listing told of the pairs is the driver's alone, and half of what would travel.
        train_loop_config={"spec": spec.without_listing()},
        scaling_config=ScalingConfig(
            num_workers=cfg.num_workers if cfg.min_workers is None else (cfg.min_workers, cfg.num_workers),
            use_gpu=cfg.use_gpu,
            resources_per_worker=worker_resources(spec.cfg),
        ),
        run_config=RunConfig(
            name="train",
            storage_path=spec.directory,
            failure_config=FailureConfig(max_failures=cfg.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=cfg.keep_checkpoints, checkpoint_score_attribute=SCORE if spec.validation else None
            ),
            callbacks=[CurveKeeper(str(curve), recorder, points[-1]["step"] if points else 0)],
        ),
    )
    log.info("%s: %s", label, _what(spec))
    watcher = CurveWatcher(curve, label, cfg.steps, spec.cfg.log_interval_s, lambda: waiting_for(spec.cfg))
    with _sigterm_ends(label), watcher:
        try:
            outcome = trainer.fit().return_value
        except TrainingFailedError as error:
            raise GmdError(f"{label}: {_why_failed(error, spec)}") from error
        except RayActorError as error:
            raise GmdError(f"{label}: {_why_controller_died(str(error))}") from error
    if isinstance(outcome, GmdError):
        raise outcome
    return outcome


class _Trainer(TorchTrainer):
    """Ray Train, whose run an exception in the driver ends.

    Ray Train takes Ctrl-C for itself, waits with it until the workers have started, and then ends the process without a
    word to those who called.
    """

    _controller: ray.actor.ActorHandle | None = None

    def _register_sigint_handler(self, controller: ray.actor.ActorHandle) -> None:
        self._controller = controller

    def fit(self) -> Result:
        try:
            return super().fit()
        except (KeyboardInterrupt, SystemExit):
            self._abort()
            raise

    def _abort(self) -> None:
        if self._controller is None or not ray.is_initialized():
            return
        try:
            ray.get(self._controller.abort.remote(), timeout=ABORT_S)
        except GetTimeoutError:
            ray.kill(self._controller)  # its workers, which it owns, end with it
        except RayError:
            pass  # it has ended, which is how it answers


@contextlib.contextmanager
def _sigterm_ends(label: str) -> Iterator[None]:
    """Turn SIGTERM, as `ray job stop` sends it, into a SystemExit for the length of a `with` block, and say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked = False

    def end(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        log.warning("%s: SIGTERM: stopping; the same command goes on from the last checkpoint", label)
        raise SystemExit(EXIT_CODE)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except SystemExit as error:
        if not asked:
            raise
        # Where Ray was waiting it makes a SystemExit of its own of ours, with status 1.
        raise SystemExit(EXIT_CODE) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _set_environment(spec: TrainingSpec) -> None:
    if spec.cfg.training.min_workers is not None:
        # A lost node is counted for a while, and a group that is asked for with it cannot start: give up sooner.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120")
    if len(ray.nodes()) == 1:
        # The watch for nodes about to be reclaimed: a process to start for nothing where no other would be left.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def _train(config: dict[str, Any]) -> Any:
    """The workers' loop, imported in the worker: torch and a student's libraries take seconds."""
    from gmd_ray.training.worker.loop import train

    return train(config)


def _why_failed(error: TrainingFailedError, spec: TrainingSpec) -> str:
    _, cause = root_cause(getattr(error, "worker_failures", None) or {0: error})
    return (
        f"workers failed more than training.max_failures={spec.cfg.training.max_failures} times, the last time with "
        f"{described(cause)}; the same command goes on from the last checkpoint"
    )


def _why_controller_died(message: str) -> str:
    last = [line.strip() for line in message.splitlines() if line.strip()][-1:]
    return f"Ray Train's controller died ({''.join(last)[:300]}); the same command goes on from the last checkpoint"


def _what(spec: TrainingSpec) -> str:
    cfg = spec.cfg.training
    parts = [f"{len(spec.source)} source pairs"] if spec.source else []
    if spec.target:
        kind = {"median": "median-filtered pairs", "supervised": "pairs with ground truth"}.get(spec.name)
        parts.append(f"{len(spec.target.ids)} {kind or 'accepted pairs'}")
    return f"{cfg.steps} steps of {cfg.batch_size} on {' and '.join(parts)}, {cfg.num_workers} worker(s)"

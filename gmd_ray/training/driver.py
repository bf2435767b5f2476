"""Running Ray Train for a fine-tune: starting it, watching it, and stopping it at any moment."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    PreemptionError,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchTrainer

from gmd_ray.config import Config
from gmd_ray.config.places import below
from gmd_ray.errors import ExitCode, GmdError, InterruptedRunError
from gmd_ray.progress import Recorder
from gmd_ray.ray_utils.capacity import living_nodes
from gmd_ray.ray_utils.metrics import run_label
from gmd_ray.ray_utils.ray_internals import can_grow
from gmd_ray.ray_utils.remote_errors import forget_locals, raise_if_error
from gmd_ray.training.curve import CurveKeeper, CurveWatcher, described, is_preemption, root_cause
from gmd_ray.training.meeting import torch_config
from gmd_ray.training.resources import check_resources, waiting_for, worker_resources
from gmd_ray.training.run_files import CURVE, SCORE, ray_storage, read_curve
from gmd_ray.training.spec import TrainingSpec

log = logging.getLogger("gmd_ray.training")

ABORT_S = 2.0
"""Seconds that Ray Train gets to end its workers. It cannot while they start, and `ray job stop` waits for 3 s."""

REPEAT_S = 1.0
"""Seconds after which a signal that was not heard is sent again."""

_ENVIRONMENT = {
    # Importing a student's libraries can take tens of seconds on a busy node; Ray's default limit is 60.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    # The controller commits checkpoints, and notices that workers have finished, when it polls; the default is 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    # Some spot nodes go 15 s after their notice; the default is 5 s.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}

RESIZE_S = 60.0
"""Seconds between two looks of Ray Train whether an elastic group of workers can grow."""


def fit(spec: TrainingSpec, label: str, recorder: Recorder) -> int | None:
    """Run Ray Train to the end.

    Returns:
        The step of the checkpoint that training resumed from; None if it started at step 0.

    Raises:
        ConfigError: the cluster can never hold the workers.
        GmdError: the error that the workers returned, or the way they died.
        KeyboardInterrupt: Ctrl-C was pressed; the workers have ended.
        SystemExit: SIGTERM arrived; the workers have ended.
    """
    check_resources(spec.cfg)
    cfg = spec.cfg.training
    nodes_change = len(living_nodes(ray.nodes())) > 1 or can_grow()
    trainer = _Trainer(
        _train,
        # Without the listing's facts about files, which the workers do not need: half of the bytes.
        train_loop_config={"spec": spec.without_listing(), "resize_s": RESIZE_S if nodes_change else None},
        torch_config=torch_config(),
        scaling_config=scaling_config(spec.cfg),
        run_config=run_config(spec, recorder),
    )
    log.info("%s: %s", label, _what(spec))
    watcher = CurveWatcher(
        below(spec.directory, CURVE), label, cfg.steps, spec.cfg.log_interval_s, lambda: waiting_for(spec.cfg)
    )
    environment = train_environment(cfg.min_workers is not None, nodes_change)
    with _sigterm_ends(label), repeated_signals(trainer.interrupted), environment, watcher:
        try:
            answer: int | GmdError | None = trainer.fit().return_value
        except TrainingFailedError as error:
            forget_locals(error)  # a caller that goes on would keep the controller's process
            raise GmdError(f"{label}: {why_failed(error, spec)}") from error
        except RayActorError as error:
            raise InterruptedRunError(f"{label}: {_why_controller_died(str(error))}") from error
    return raise_if_error(answer)


def scaling_config(cfg: Config) -> ScalingConfig:
    """Ray Train's settings for the number of workers, what each takes, and on which nodes."""
    t = cfg.training
    return ScalingConfig(
        num_workers=t.num_workers if t.min_workers is None else (t.min_workers, t.num_workers),
        use_gpu=t.use_gpu,
        resources_per_worker=worker_resources(cfg),
        label_selector=dict(t.labels) or None,
        elastic_resize_monitor_interval_s=RESIZE_S,
    )


def run_config(spec: TrainingSpec, recorder: Recorder) -> RunConfig:
    """Ray Train's settings for the checkpoints, the failures and the figures of a fine-tune."""
    cfg, curve = spec.cfg.training, below(spec.directory, CURVE)
    points = read_curve(curve)
    return RunConfig(
        name="train",
        **ray_storage(spec.directory),
        failure_config=FailureConfig(
            max_failures=cfg.max_failures, max_preemption_failures=cfg.max_preemption_failures
        ),
        checkpoint_config=CheckpointConfig(
            num_to_keep=cfg.keep_checkpoints, checkpoint_score_attribute=SCORE if spec.validation else None
        ),
        callbacks=[
            CurveKeeper(curve, recorder, points[-1]["step"] if points else 0, (run_label(spec.cfg.out), spec.name))
        ],
    )


class _Trainer(TorchTrainer):
    """A TorchTrainer whose run ends with an exception in the driver, and passes that on.

    Ray Train installs its own handler of Ctrl-C, which waits until the workers have started and then ends the process,
    so that a caller never sees the KeyboardInterrupt.
    """

    _controller: ray.actor.ActorHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.interrupted = threading.Event()
        """Set once the exception of a signal has reached `fit`."""

    def _register_sigint_handler(self, controller: ray.actor.ActorHandle) -> None:
        self._controller = controller

    def fit(self) -> Result:
        try:
            return super().fit()
        except (KeyboardInterrupt, SystemExit):
            self.interrupted.set()
            self._abort()
            raise
        finally:
            self._controller = None

    def _abort(self) -> None:
        if self._controller is None or not ray.is_initialized():
            return
        try:
            ray.get(self._controller.abort.remote(), timeout=ABORT_S)
        except GetTimeoutError:
            ray.kill(self._controller)  # its workers, which it owns, end with it
        except RayError:
            pass  # the controller has ended, as it was told to


@contextlib.contextmanager
def _sigterm_ends(label: str) -> Iterator[None]:
    """Turn SIGTERM, which `ray job stop` sends, into a logged SystemExit while a `with` block runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked = False

    def end(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        log.warning("%s: SIGTERM: stopping; the same command goes on from the last checkpoint", label)
        raise SystemExit(ExitCode.INTERRUPTED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except SystemExit as error:
        if not asked:
            raise
        # If Ray was waiting for an answer, it replaces our SystemExit by its own, with status 1.
        raise SystemExit(ExitCode.INTERRUPTED) from error
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def repeated_signals(heard: threading.Event, every_s: float = REPEAT_S) -> Iterator[None]:
    """Send SIGINT or SIGTERM again until its exception is heard, while a `with` block runs.

    A signal may come while the main thread is in a callback of Ray's C++ core, which drops the exception that the
    handler raises. The fine-tune would then go on to its end.

    Args:
        heard: is set by the code that catches the exception.
        every_s: seconds between two signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    over = threading.Event()
    handlers: dict[int, Any] = {}

    def note(signum: int, frame: FrameType | None) -> None:
        came.put(signum)
        if callable(handlers[signum]):
            handlers[signum](signum, frame)

    def repeat() -> None:
        signum = came.get()
        while signum is not None and not over.wait(every_s) and not heard.is_set():
            os.kill(os.getpid(), signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        handlers[signum] = signal.signal(signum, note)
    threading.Thread(target=repeat, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        came.put(None)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def train_environment(elastic: bool, nodes_change: bool) -> Iterator[None]:
    """Set Ray Train's variables while a `with` block runs, where the user has not set them."""
    wanted = dict(_ENVIRONMENT)
    if elastic:
        # Ray counts a lost node for a while, and a worker group that needs it cannot start: give up on it sooner.
        wanted["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "120"
    if not nodes_change:
        # The preemption watcher is a process of its own, and useless on a cluster of one node.
        wanted["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    wanted = {key: value for key, value in wanted.items() if key not in os.environ}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key in wanted:
            del os.environ[key]


def _train(config: dict[str, Any]) -> Any:
    """Run the workers' loop, which is imported in the worker: importing torch in the driver would take seconds."""
    from gmd_ray.training.worker.loop import train

    return train(config)


def why_failed(error: TrainingFailedError, spec: TrainingSpec) -> str:
    """Say which limit ended a fine-tune: that of failures, or that of nodes taken away."""
    t = spec.cfg.training
    goes_on = "the same command goes on from the last checkpoint"
    failures: dict[int, Exception] = getattr(error, "worker_failures", None) or {0: error}
    if isinstance(error, PreemptionError) or any(is_preemption(failure) for failure in failures.values()):
        limit = f"training.max_preemption_failures={t.max_preemption_failures}"
        return f"nodes of workers were taken away more than {limit} times; {goes_on}"
    _, cause = root_cause(failures)
    limit = f"training.max_failures={t.max_failures}"
    return f"workers failed more than {limit} times, the last time with {described(cause)}; {goes_on}"


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

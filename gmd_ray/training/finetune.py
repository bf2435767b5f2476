"""Stage 2 as its callers see it: one call that trains, or goes on training, or finds that there is nothing to do."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gmd_ray.config import Config
from gmd_ray.config.secrets import redact
from gmd_ray.errors import GmdError
from gmd_ray.progress import NullRecorder, Recorder
from gmd_ray.training.documents import read_json, write_json
from gmd_ray.training.plan import CURVE, SCORE, Finetuned, Plan, check_settings, make_plan

log = logging.getLogger("gmd_ray.training")

DONE = "finetuned.json"

_ENVIRONMENT = {
    # Importing a student's libraries takes tens of seconds on a busy node; Ray's own limit is 60.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    # The controller commits checkpoints, and sees that the workers have finished, when it polls: every 2 s otherwise.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
}


def finetune(cfg: Config, name: str, recorder: Recorder | None = None, *, seed: int | None = None) -> Finetuned:
    """Fine-tune the student on source pairs and accepted pairs, with Ray Train.

    The same call again returns what is finished, and otherwise goes on from the last checkpoint.

    Args:
        cfg: the pairs are read from `<out>/pairs` at `scorer.threshold`.
        name: `adapted`; or a control: `source_only` (the same steps on source pairs alone), `median` (the same pairs
            with a 3x3 median of `restored` for a target), `supervised` (the same photos with their ground truth from
            `training.supervised_hq`: the upper bound). `pretrained` trains on source pairs alone with the stochastic
            depth of the architecture, see `gmd_ray.training.pretrain`.
        recorder: gets `loss`, `lr`, `grad_norm`, `images_per_s`, `data_wait` (share of time spent waiting for data),
            `n_source` and `n_target`, `loss_source` and `loss_target` (of the crops of each, unweighted), each the
            mean over the last `training.log_every` steps, which also is how often; and `val_psnr` at each validation.
            It is pickled to Ray Train's controller.
        seed: of sample order, crops and degradations; one that is given has an output directory of its own,
            `<out>/finetune/<name>-seed<seed>`. Default: `cfg.seed`, in `<out>/finetune/<name>`.

    Raises:
        ConfigError: settings that cannot be met.
        DataError: no source pairs, no finished pair store, no accepted pairs, or an image that cannot be used.
        ModelError: a student that cannot be loaded or saved.
        ResumeMismatchError: the output was begun with other settings, pairs or student weights.
        GmdError: the loss is not finite, or workers died more than `training.max_failures` times.
    """
    started = time.monotonic()
    recorder = NullRecorder() if recorder is None else recorder
    plan = make_plan(cfg, name, seed)
    settings = check_settings(plan)
    done_path = Path(plan.directory, DONE)
    label = f"finetune {Path(plan.directory).name}"
    if done_path.is_file() and Path(plan.student).exists():
        log.info("%s: finished before, %s", label, plan.student)
        return Finetuned(**read_json(done_path) | {"path": plan.student})
    counts = {"source pairs": len(plan.source), "accepted pairs": len(plan.target.ids) if plan.target else 0}
    recorder.params(settings | {"counts": counts})
    resumed_from = _fit(plan, label, recorder)

    from gmd_ray.training.curve import read_curve

    finetuned = Finetuned(
        path=plan.student,
        steps=plan.cfg.training.steps,
        final_loss=read_curve(Path(plan.directory, CURVE))[-1]["loss"],
        seconds=time.monotonic() - started,
        resumed_from=resumed_from,
    )
    write_json(done_path, dataclasses.asdict(finetuned) | {"path": redact(plan.student)})  # read by no later run
    recorder.artifact(plan.student)
    return finetuned


def _fit(plan: Plan, label: str, recorder: Recorder) -> int | None:
    """Run Ray Train to the end; the step of the last checkpoint that it went on from, if any."""
    if plan.cfg.training.min_workers is not None:
        # A lost node is counted for a while, and a group that is asked for with it cannot start: give up sooner.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120")
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)

    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from gmd_ray.training.curve import CurveKeeper, CurveWatcher, read_curve

    if len(ray.nodes()) == 1:
        # The watch for nodes about to be reclaimed: a process to start for nothing where no other would be left.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

    cfg = plan.cfg.training
    curve = Path(plan.directory, CURVE)
    points = read_curve(curve)
    _warn_of_scarce_cpus(ray.cluster_resources().get("CPU", 0.0), plan)
    resources = {"CPU": cfg.cpus_per_worker} | ({"GPU": 1.0} if cfg.use_gpu else {})
    trainer = TorchTrainer(
        _train,
        train_loop_config={"plan": plan},
        scaling_config=ScalingConfig(
            num_workers=cfg.num_workers if cfg.min_workers is None else (cfg.min_workers, cfg.num_workers),
            use_gpu=cfg.use_gpu,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name="train",
            storage_path=plan.directory,
            failure_config=FailureConfig(max_failures=cfg.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=cfg.keep_checkpoints, checkpoint_score_attribute=SCORE if plan.validation else None
            ),
            callbacks=[CurveKeeper(str(curve), recorder, points[-1]["step"] if points else 0)],
        ),
    )
    log.info("%s: %s", label, _what(plan))
    with _own_interrupt(), CurveWatcher(curve, label, cfg.steps, plan.cfg.log_interval_s):
        try:
            outcome = trainer.fit().return_value
        except TrainingFailedError as error:
            causes = [*getattr(error, "worker_failures", {}).values(), error]
            cause = next((c for c in causes if not isinstance(c, ray.exceptions.RayActorError)), causes[0])
            line = " ".join(str(cause).split())[:300]
            raise GmdError(
                f"{label}: workers failed more than training.max_failures={cfg.max_failures} times, the last time with "
                f"{type(cause).__name__}: {line}; the same command goes on from the last checkpoint"
            ) from error
        except ray.exceptions.RayActorError as error:
            raise GmdError(f"{label}: {_why_controller_died(str(error), plan)}") from error
    if isinstance(outcome, GmdError):
        raise outcome
    return outcome


def _train(config: dict[str, Any]) -> Any:
    """The workers' loop, imported in the worker: torch and a student's libraries take seconds."""
    from gmd_ray.training.loop import train

    return train(config)


def _why_controller_died(message: str, plan: Plan) -> str:
    gone = re.search(r"CheckpointManagerInitializationError: .*path=([^)]+)\)", message)
    if gone:
        return f"the checkpoint {gone[1]} is gone; put it back, or remove {plan.directory}/train to begin anew"
    last = [line.strip() for line in message.splitlines() if line.strip()][-1:]
    return f"Ray Train's controller died ({''.join(last)[:300]}); the same command goes on from the last checkpoint"


def _what(plan: Plan) -> str:
    cfg = plan.cfg.training
    parts = [f"{len(plan.source)} source pairs"] if plan.source else []
    if plan.target:
        kind = {"median": "median-filtered pairs", "supervised": "pairs with ground truth"}.get(plan.name)
        parts.append(f"{len(plan.target.ids)} {kind or 'accepted pairs'}")
    return f"{cfg.steps} steps of {cfg.batch_size} on {' and '.join(parts)}, {cfg.num_workers} worker(s)"


def _warn_of_scarce_cpus(available: float, plan: Plan) -> None:
    cfg = plan.cfg.training
    needed = (cfg.min_workers or cfg.num_workers) * cfg.cpus_per_worker
    if needed > available:
        log.warning(
            "%d worker(s) x training.cpus_per_worker=%g needs %g CPUs, the cluster has %g: waiting until it has grown",
            cfg.min_workers or cfg.num_workers,
            cfg.cpus_per_worker,
            needed,
            available,
        )


@contextlib.contextmanager
def _own_interrupt() -> Iterator[None]:
    """Ray Train takes Ctrl-C for itself and keeps it after the run; give it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)

"""The training loop of a Ray Train worker: resumable, with the same global batches for any number of workers."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import ray.train
import ray.train.torch
import torch

from gmd_ray.errors import DataError, GmdError, ResumeMismatchError
from gmd_ray.ray_utils.remote_errors import as_value
from gmd_ray.storage import local_draft
from gmd_ray.students import Student, load_student
from gmd_ray.training.data.batches import Batch, Batches, Prefetcher
from gmd_ray.training.data.datasets import Crops, SourcePairs, TargetPairs
from gmd_ray.training.data.mixing import Mixture, Stream
from gmd_ray.training.run_files import AGAIN, SCORE, STATE, checkpoint_name, state_of
from gmd_ray.training.spec import TrainingSpec
from gmd_ray.training.worker.meter import Meter
from gmd_ray.training.worker.optim import learning_rate
from gmd_ray.training.worker.parallel import first_failure, gathered, load_optimizer, wrap
from gmd_ray.training.worker.preemption import PreemptionWatch, SaveDecision, SavePlan
from gmd_ray.training.worker.state import load_state
from gmd_ray.training.worker.step import TrainingStep, memory_layout
from gmd_ray.training.worker.validation import Validation


def train(config: dict[str, Any]) -> GmdError | int | None:
    """Run one worker's part of a fine-tune.

    Args:
        config: {"spec": TrainingSpec}; and {"resize_s": float} where nodes may come or go: a group of fewer workers
            than `training.num_workers` saves at least this often, since it may be ended at any time in order to grow.

    Returns:
        The step that it was resumed from (None if it started at step 0), or a GmdError for the user. Ray Train restarts
        the workers when one raises an exception, which is right for a lost machine and wrong for a wrong setting:
        errors of that kind are returned, and by all workers alike.
    """
    spec: TrainingSpec = config["spec"]
    cfg = spec.cfg.training
    threads = max(1, int(cfg.cpus_per_worker))
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    worker = as_value(_Worker, spec)
    failure = first_failure(worker if isinstance(worker, GmdError) else None)
    if failure is not None:
        return failure
    assert isinstance(worker, _Worker)
    with Prefetcher(worker.batches, worker.start, cfg.steps, threads) as prefetcher:
        worker.wrap()
        worker.report_again()
        failure = worker.run(prefetcher, worker.watch(config.get("resize_s")))
    if failure is None:
        failure = as_value(worker.export)
    return first_failure(failure) or (worker.start or None)


class _Worker:
    """Model, data and state of one rank."""

    def __init__(self, spec: TrainingSpec) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self._spec, self._cfg = spec, spec.cfg.training
        self._device = _device()
        self._student = self._load_student()
        self.batches = self._batches(self._student.scale)
        self._state = _last_checkpoint()
        self.start = 0 if self._state is None else int(self._state["step"])
        self._logged: list[dict[str, Any]] = list((self._state or {}).get("logged", []))
        """Figures since the last checkpoint but one, in the order of steps."""
        self._saved_at = self.start
        self._best: tuple[float, int] = (self._state or {}).get("best", (-math.inf, 0))
        if self._state is not None and self._state["sampler"] != self._mixture.state(self.start):
            raise ResumeMismatchError(
                f"{spec.directory}: its checkpoint has another sample order; remove it to start over"
            )
        sharded = self._cfg.strategy == "fsdp"
        dealt = (0, 1) if sharded else (self.rank, self.world_size)
        self._validation = Validation(spec.validation, spec.cfg.source, *dealt) if spec.validation else None

    def wrap(self) -> None:
        """Move the model to its device, join it with those of the other workers, and load the checkpoint's state."""
        module = self._student.module.train()
        module.to(memory_format=memory_layout(self._cfg))  # type: ignore[call-overload]
        if self._state is not None:
            module.load_state_dict(self._state["module"])
        self._step = TrainingStep(
            self._student,
            wrap(module, self._cfg.strategy, self._device),
            self._mixture,
            self._cfg,
            seed=self._spec.seed,
            rank=self.rank,
            world_size=self.world_size,
            device=self._device,
        )
        if self._state is not None:
            self._step.ema.load(self._state["ema"])
            load_optimizer(self._step.optimizer, self._state["optimizer"])
        self._state = None

    def report_again(self) -> None:
        """Report the figures that led to the checkpoint once more: the run may have ended before they were logged."""
        if self._logged:
            ray.train.report({"step": self.start, AGAIN: self._logged})

    def watch(self, resize_s: float | None) -> PreemptionWatch | None:
        """The watch over nodes that go; None where none can. See `train` for `resize_s`."""
        if resize_s is None:
            return None
        may_grow = self.world_size < self._cfg.num_workers
        return PreemptionWatch(SavePlan(self.start, resize_s if may_grow else None))

    def run(self, prefetcher: Prefetcher, watch: PreemptionWatch | None) -> GmdError | None:
        """Train to the last step, with reports and checkpoints on the way.

        Args:
            prefetcher: the batches of this worker.
            watch: says when to save because a node goes; None where none can.

        Returns:
            The error that ended training on all workers; None if the last step was reached.
        """
        cfg = self._cfg
        meter = Meter(self._device)
        for step in range(self.start, cfg.steps):
            failure: GmdError | None = None
            try:
                batch = prefetcher.get()
            except GmdError as error:
                # The other workers wait for this worker's gradients. NaN gradients stop all of them at this step.
                failure, batch = error, self._nan_batch()
            lr = learning_rate(step, cfg)
            sums, norm = self._step(step, batch, lr)
            if not torch.isfinite(norm):
                nan = GmdError(
                    f"fine-tune {self._spec.name}: loss or gradient is not finite at step {step + 1}; "
                    f"lower training.lr={cfg.lr:g}"
                )
                return first_failure(failure) or nan
            meter.add(sums, norm, self._mixture.composition(step))
            done = step + 1
            last = done == cfg.steps
            validate = self._validation is not None and (last or done % cfg.validate_every == 0)
            figures: dict[str, Any] = {"step": done}
            if last or validate or done % cfg.log_every == 0:
                figures |= meter.read(prefetcher.waited_s) | {"lr": lr}
            if validate:
                try:
                    figures[SCORE] = self._validate()
                except DataError as error:
                    failure = error
                failure = first_failure(failure)
                if failure is not None:
                    return failure
                # The later one wins a tie, as in Ray Train's ranking of the checkpoints that it keeps.
                self._best = max(self._best, (figures[SCORE], done))
                meter.restart(prefetcher.waited_s)
            if len(figures) > 1:
                self._logged.append(dict(figures))
            notice = watch.look(done) if watch and not last else SaveDecision()
            if notice.leaving:
                figures |= notice.figures()
            save = last or validate or done % cfg.checkpoint_every == 0 or notice.save
            began = time.monotonic()
            if save or len(figures) > 1:
                self._report(figures, save)
            if watch and save:
                watch.saved(time.monotonic() - began)
            if notice.wait_s:
                time.sleep(notice.wait_s)
        return None

    def export(self) -> None:
        """Write the student with the averaged weights of the last or the best step, in the layout of `student.path`."""
        state = gathered(self._step.ema.state, keep=self.rank == 0)
        if self.rank == 0:
            _, step = self._best
            if self._cfg.export == "best" and step not in (0, self._cfg.steps):
                state = load_state(state_of(self._spec.directory, step))["ema"]
            student = self._load_student()  # a new one: the weights of self._student may be sharded
            student.module.load_state_dict(state)
            with local_draft(self._spec.student) as place:
                student.save(place)

    def _load_student(self) -> Student:
        """Load `student.path` on the CPU; `wrap` moves it to the device that Ray Train gave this worker."""
        cfg = self._cfg
        return load_student(
            dataclasses.replace(self._spec.cfg.student, device="cpu"),
            cfg.loss,
            stochastic_depth=self._spec.name == "pretrained",
            perceptual=cfg.perceptual,
            perceptual_weights=cfg.perceptual_weights,
        )

    def _validate(self) -> float:
        assert self._validation is not None
        with self._step.ema.in_place():
            return self._validation(self._student, self._device)

    def _report(self, figures: dict[str, Any], save: bool) -> None:
        """Report figures, and save a checkpoint if asked to. All workers wait here for each other."""
        if not save:
            ray.train.report(figures)
            return
        step = int(figures["step"])
        state = {
            "step": step,
            "sampler": self._mixture.state(step),
            "best": self._best,
            "logged": self._logged,
            "module": self._student.module.state_dict(),
            "ema": self._step.ema.state,
            "optimizer": self._step.optimizer.state_dict(),
        }
        state = gathered(state, keep=self.rank == 0)
        self._logged = [point for point in self._logged if point["step"] > self._saved_at]
        self._saved_at = step
        if self.rank > 0:
            ray.train.report(figures)
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder, STATE))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(figures, checkpoint, checkpoint_dir_name=checkpoint_name(step))

    def _batches(self, scale: int) -> Batches:
        spec, cfg = self._spec, self._cfg
        streams: dict[Stream, Crops] = {}
        if spec.source:
            streams["source"] = SourcePairs(
                spec.cfg.source,
                spec.source,
                scale=scale,
                patch=cfg.patch,
                flip=cfg.flip,
                seed=spec.seed,
                cache_bytes=int(cfg.cache_gb * 1e9),
            )
        if spec.target:
            streams["target"] = TargetPairs(
                spec.target, scale=scale, patch=cfg.patch, flip=cfg.flip, gray=spec.cfg.target.gray
            )
        n_target = len(spec.target.ids) if spec.target else 0
        self._mixture = Mixture(
            cfg.batch_size, cfg.source_ratio, len(spec.source), n_target, spec.seed, mode=cfg.mixing
        )
        return Batches(self._mixture, streams, spec.seed, self.rank, self.world_size, self._device.type == "cuda")

    def _nan_batch(self) -> Batch:
        p, n = self._cfg.patch, self._cfg.accumulate
        hq = torch.full((n, 3, p * self._student.scale, p * self._student.scale), float("nan"))
        return Batch(torch.zeros(n, 3, p, p), hq, torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.int64))


def _last_checkpoint() -> dict[str, Any] | None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return load_state(str(Path(folder, STATE)))


def _device() -> torch.device:
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device)
    return device

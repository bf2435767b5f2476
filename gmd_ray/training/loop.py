"""The training loop that each Ray Train worker runs: DDP over exact global batches, resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from gmd_ray.errors import GmdError
from gmd_ray.students import Student, load_student
from gmd_ray.training.batches import Batches, Prefetcher
from gmd_ray.training.data import Crops, SourcePairs, TargetPairs
from gmd_ray.training.mixing import Mixture, Stream
from gmd_ray.training.optim import Ema, learning_rate, make_optimizer
from gmd_ray.training.plan import Plan

STATE = "state.pt"


def train(config: dict[str, Any]) -> GmdError | int | None:
    """One worker's part of a fine-tune.

    Args:
        config: {"plan": Plan}.

    Returns:
        The step that it was resumed from (None for a new start); or the error that a user must mend. Ray Train starts
        the workers again after an error that is raised, which is right for lost machines and wrong for wrong settings:
        those are returned, by all workers alike.
    """
    plan: Plan = config["plan"]
    cfg = plan.cfg.training
    threads = max(1, int(cfg.cpus_per_worker))
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    worker = None
    failure: GmdError | None = None
    try:
        worker = _Worker(plan)
    except GmdError as error:
        failure = error
    failure = _first_of_all(failure)
    if failure is not None:
        return failure
    assert worker is not None
    with Prefetcher(worker.batches, worker.start, cfg.steps, threads) as prefetcher:
        worker.wrap()
        failure = worker.run(prefetcher)
    if failure is None and worker.rank == 0:
        try:
            worker.export()
        except GmdError as error:
            failure = error
    return _first_of_all(failure) or (worker.start or None)


class _Worker:
    """Model, data and state of one rank."""

    def __init__(self, plan: Plan) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self._plan, self._cfg = plan, plan.cfg.training
        self._device = _device()
        self._layout = torch.channels_last if self._cfg.channels_last else torch.contiguous_format
        # Loaded on the CPU: which device is this worker's, Ray Train knows.
        student = dataclasses.replace(plan.cfg.student, device="cpu")
        self._student: Student = load_student(student, self._cfg.loss)
        self.batches = self._batches(self._student.scale)
        self._state = _last_checkpoint()
        self.start = 0 if self._state is None else int(self._state["step"])

    def wrap(self) -> None:
        """Put the model on its device and under DDP, and take up the checkpoint's state."""
        module = self._student.module.train()
        module.to(memory_format=self._layout)  # type: ignore[call-overload]
        if self._state is not None:
            module.load_state_dict(self._state["module"])
        # SPAN, FFTformer and others hold parameters that a training forward never reaches; plain DDP stops at those.
        unused = {"find_unused_parameters": True}
        self._model = ray.train.torch.prepare_model(module, parallel_strategy_kwargs=unused)
        self._ema = Ema(module, self._cfg.ema)
        self._optimizer = make_optimizer(module, self._cfg)
        if self._state is not None:
            self._ema.load(self._state["ema"])
            self._optimizer.load_state_dict(self._state["optimizer"])
        self._state = None

    def run(self, prefetcher: Prefetcher) -> GmdError | None:
        """Train from the checkpoint to the last step; reports and checkpoints on the way."""
        cfg = self._cfg
        meter = _Meter(self._device)
        for step in range(self.start, cfg.steps):
            failure: GmdError | None = None
            try:
                batch = prefetcher.get()
            except GmdError as error:
                # The others would wait for this worker's gradients for ever: it sends NaN, which stops them all.
                failure, batch = error, self._nan_batch()
            lr = learning_rate(step, cfg)
            loss, norm = self._step(step, batch, lr)
            if not torch.isfinite(norm):
                nan = GmdError(
                    f"fine-tune {self._plan.name}: loss or gradient is not finite at step {step + 1}; "
                    f"lower training.lr={cfg.lr:g}"
                )
                return _first_of_all(failure) or nan
            meter.add(loss, norm, self._mixture.composition(step))
            done = step + 1
            last = done == cfg.steps
            figures: dict[str, float] = {"step": done}
            if last or done % cfg.log_every == 0:
                figures |= meter.read(prefetcher.waited_s) | {"lr": lr}
            save = last or done % cfg.checkpoint_every == 0
            if save or len(figures) > 1:
                self._report(figures, save)
        return None

    def export(self) -> None:
        """Write the student with the averaged weights, in the layout that it came in."""
        self._student.module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self._student.module.load_state_dict(self._ema.state)
        self._student.save(self._plan.student)

    def _step(self, step: int, batch: tuple[Tensor, Tensor], lr: float) -> tuple[Tensor, Tensor]:
        """One optimiser step: this worker's part of the global batch's mean loss, and the global gradient's norm."""
        cfg = self._cfg
        torch.manual_seed(_step_seed(self._plan.seed, step, self.rank))  # for dropout; so a resumed run draws the same
        lq, hq = (side.to(self._device, non_blocking=True, memory_format=self._layout) for side in batch)
        with _autocast(self._device, cfg.bf16):
            loss, _ = self._student.training_loss(lq, hq, self._model)
        part = loss * (len(lq) / cfg.batch_size)
        self._optimizer.zero_grad()
        # DDP takes the mean over workers; times their number it is the sum of the parts, however uneven these are.
        # A loss that is no number must show in every worker's gradient; that of |NaN| is 0.
        (part * torch.where(part.isfinite(), self.world_size, torch.nan)).backward()
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if torch.isfinite(norm):
            if cfg.clip_grad_norm > 0:
                torch.nn.utils.clip_grads_with_norm_(parameters, cfg.clip_grad_norm, norm)
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.step()
            self._ema.update()
        return part.detach(), norm

    def _report(self, figures: dict[str, float], save: bool) -> None:
        """A barrier over all workers; the checkpoint, where there is one, counts once the controller has seen it."""
        if not (save and self.rank == 0):
            ray.train.report(figures)
            return
        with tempfile.TemporaryDirectory() as folder:
            state = {
                "step": int(figures["step"]),
                "module": self._student.module.state_dict(),
                "ema": self._ema.state,
                "optimizer": self._optimizer.state_dict(),
            }
            torch.save(state, Path(folder, STATE))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(figures, checkpoint, checkpoint_dir_name=f"step_{state['step']:08d}")

    def _batches(self, scale: int) -> Batches:
        plan, cfg = self._plan, self._cfg
        streams: dict[Stream, Crops] = {}
        if plan.source:
            streams["source"] = SourcePairs(
                plan.cfg.source,
                plan.source,
                scale=scale,
                patch=cfg.patch,
                flip=cfg.flip,
                seed=plan.seed,
                cache_bytes=int(cfg.cache_gb * 1e9),
            )
        if plan.target:
            streams["target"] = TargetPairs(plan.target, scale=scale, patch=cfg.patch, flip=cfg.flip)
        n_target = len(plan.target.ids) if plan.target else 0
        self._mixture = Mixture(cfg.batch_size, cfg.source_ratio, len(plan.source), n_target, plan.seed)
        return Batches(self._mixture, streams, plan.seed, self.rank, self.world_size, self._device.type == "cuda")

    def _nan_batch(self) -> tuple[Tensor, Tensor]:
        p = self._cfg.patch
        hq = torch.full((1, 3, p * self._student.scale, p * self._student.scale), float("nan"))
        return torch.zeros(1, 3, p, p), hq


class _Meter:
    """Means over the steps since the last reading, over all workers."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._steps = self._n_source = self._n_target = 0
        self._since, self._waited = time.monotonic(), 0.0

    def add(self, part: Tensor, norm: Tensor, composition: tuple[int, int]) -> None:
        """A worker's part of the loss; the gradient norm and the global batch's composition are the same for all."""
        self._sums += torch.stack([part, norm]).to(self._sums)
        self._steps += 1
        self._n_source += composition[0]
        self._n_target += composition[1]

    def read(self, waited_s: float) -> dict[str, float]:
        """Global figures; every worker has to call it at the same step."""
        sums = self._sums.clone()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
            sums[1] /= dist.get_world_size()
        loss, norm = (sums / self._steps).tolist()
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        figures = {
            "loss": loss,
            "grad_norm": norm,
            "images_per_s": (self._n_source + self._n_target) / seconds,
            "n_source": self._n_source / self._steps,
            "n_target": self._n_target / self._steps,
            "data_wait": (waited_s - self._waited) / seconds,
        }
        self._sums.zero_()
        self._steps = self._n_source = self._n_target = 0
        self._since, self._waited = now, waited_s
        return figures


def _first_of_all(failure: GmdError | None) -> GmdError | None:
    """The failure of the lowest rank that has one; every worker has to call it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return failure
    failures: list[GmdError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    return next((f for f in failures if f is not None), None)


def _last_checkpoint() -> dict[str, Any] | None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        state: dict[str, Any] = torch.load(os.path.join(folder, STATE), map_location="cpu", weights_only=True)
    return state


def _device() -> torch.device:
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device)
    return device


def _autocast(device: torch.device, wanted: bool) -> contextlib.AbstractContextManager[Any]:
    if wanted and device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", torch.bfloat16)
    return contextlib.nullcontext()


def _step_seed(*key: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1

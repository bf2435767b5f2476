"""Steps of Stage 2 by the project's `TrainingStep` and loaders: time, memory, data wait, and the price of DDP."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from gmd_ray.config import TrainingConfig
from gmd_ray.images.sets.pairs import list_pairs
from gmd_ray.students import Student
from gmd_ray.training.data.batches import Batches, Prefetcher
from gmd_ray.training.data.datasets import SourcePairs, TargetPairs
from gmd_ray.training.data.mixing import Mixture
from gmd_ray.training.worker.step import TrainingStep
from tests.benchmarks.gpu.sections import Sections, clock
from tests.benchmarks.training import write_world

ROOM = 0.9
"""Share of the GPU's memory that a step may fill."""


@dataclass(frozen=True)
class StepShapes:
    """Sizes of the training rows."""

    batch: int
    patch: int
    """Side of the crops in LQ pixels."""
    side: int
    """Height of the HQ images on disk, which are 16 : 9."""
    pairs: int
    """Pairs of each stream on disk."""
    seconds: float
    """Time of a row after its warm-up; three steps at least."""
    loaders: tuple[int, ...] = (1, 4)
    """Values of `training.cpus_per_worker`, the threads that load data."""


class World:
    """Source pairs and accepted pairs on disk, and the batches drawn from them."""

    def __init__(self, folder: Path, scale: int, shapes: StepShapes, pin: bool) -> None:
        cv2.setNumThreads(1)  # as in a worker
        source, target = write_world(folder, {"side": shapes.side, "scale": scale, "made": None}, shapes.pairs)
        pairs = list_pairs(str(source.hq), source.lq)
        common = {"scale": scale, "patch": shapes.patch, "flip": True}
        # Without a cache every crop decodes its images, as it does where the data set is far larger than the cache.
        streams = {
            "source": SourcePairs(source, pairs, **common, seed=0, cache_bytes=0),
            "target": TargetPairs(target, **common),
        }
        self.mixture = Mixture(shapes.batch, 0.9, len(pairs), len(target.ids), 0)
        self.batches = Batches(self.mixture, streams, 0, 0, 1, pin)
        self.held = [self.batches(step) for step in range(2)]
        begun = time.perf_counter()
        self.batches(2)
        self.made_s = time.perf_counter() - begun
        """Seconds in which one thread makes a batch."""


class StepTable:
    """The rows of one student."""

    def __init__(
        self, name: str, student: Student, world: World, shapes: StepShapes, sections: Sections, ceiling: float
    ) -> None:
        self.name, self.student, self.world, self.shapes = name, student, world, shapes
        self.sections, self.ceiling = sections, ceiling
        self.device = next(student.module.parameters()).device
        self.cuda = self.device.type == "cuda"
        self.parameters = sum(p.numel() for p in student.module.parameters())
        self.seconds: dict[str, float] = {}
        self._per_crop: dict[bool, float] = {}
        student.module.train()
        self.flops = shapes.batch / 2 * self._count()
        """Operations of a step, the autoencoder's encoding included."""
        sections.keep(f"{name}: student", parameters=self.parameters, flops=self.flops, made_s=world.made_s)
        sections.say(
            f"{name}: {self.parameters / 1e6:.2f} M parameters, {shapes.batch} crops of {shapes.patch} LQ pixels, "
            f"{self.flops / 1e12:.3g} TFLOP a step; a batch made in {1e3 * world.made_s:.0f} ms by one thread"
        )

    def row(self, label: str, *, bf16: bool, ddp: bool = False, compiled: bool = False, threads: int = 0) -> None:
        """Time steps and print a row.

        Args:
            label: name of the row.
            bf16: `training.bf16`.
            ddp: wrap the module in DDP, with a world of one.
            compiled: `training.compile`.
            threads: threads that load data; 0 trains on two batches held in memory.
        """
        cfg = TrainingConfig(batch_size=self.shapes.batch, patch=self.shapes.patch, bf16=bf16, compile=compiled)
        cfg = replace(cfg, accumulate=self._accumulate(bf16, ddp))
        while True:
            _free(self.student.module)
            try:
                self._timed(label, cfg, ddp, threads)
                return
            except torch.OutOfMemoryError:
                if cfg.accumulate >= self.shapes.batch:
                    raise
                cfg = replace(cfg, accumulate=2 * cfg.accumulate)
                self.sections.say(f"{self.name}, {label}: out of memory, training.accumulate={cfg.accumulate}")

    def compare(self, label: str, other: str) -> None:
        """Print how many times as fast one row is as another."""
        if label in self.seconds and other in self.seconds:
            ratio = self.seconds[other] / self.seconds[label]
            self.sections.keep(f"{self.name}: {label} against {other}", ratio=ratio)
            self.sections.say(f"{self.name}: {label} is {ratio:.2f} times as fast as {other}")

    def _timed(self, label: str, cfg: TrainingConfig, ddp: bool, threads: int) -> None:
        module = self.student.module
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        with _joined(module, self.device, ddp) as joined:
            step = TrainingStep(
                self.student, joined, self.world.mixture, cfg, seed=0, rank=0, world_size=1, device=self.device
            )
            begun = clock()
            step(0, self.world.held[0], cfg.lr)
            first = clock() - begun
            begun = clock()
            step(1, self.world.held[1], cfg.lr)
            once = clock() - begun
            count = max(3, min(40, int(self.shapes.seconds / once)))
            times, waited, finite = self._loaded(step, cfg, count, threads) if threads else self._held(step, cfg, count)
        median = statistics.median(times)
        rate, peak = self.flops / median, torch.cuda.max_memory_allocated() / 1e9 if self.cuda else 0.0
        self.seconds[label] = median
        self.sections.keep(
            f"{self.name}: {label}", seconds=times, accumulate=cfg.accumulate, batch=cfg.batch_size, first_s=first,
            tflops=rate / 1e12, peak_gb=peak, data_wait=waited, threads=threads, finite=finite,
        )  # fmt: skip
        wait = f"{waited:.1%}" if threads else "-"
        self.sections.say(
            f"| {self.name} | {label} | {cfg.accumulate} | {1e3 * median:.1f} ms | {cfg.batch_size / median:.1f} | "
            f"{rate / 1e12:.3g} | {100 * rate / self.ceiling:.0f} % | {wait} | {peak:.1f} GB | first {first:.1f} s |"
        )
        if not finite:
            raise FloatingPointError(f"{label}: the gradient is not finite, so that the optimiser did nothing")

    def _held(self, step: TrainingStep, cfg: TrainingConfig, count: int) -> tuple[list[float], float, bool]:
        times, finite = [], True
        for number in range(2, 2 + count):
            begun = clock()
            _, norm = step(number, self.world.held[number % 2], cfg.lr)
            times.append(clock() - begun)
            finite = finite and bool(norm.isfinite())
        return times, 0.0, finite

    def _loaded(
        self, step: TrainingStep, cfg: TrainingConfig, count: int, threads: int
    ) -> tuple[list[float], float, bool]:
        """(seconds of each step, share of the time spent waiting, gradients are finite).

        The time begins with the first batch in hand and the others in the making, so that nothing waits ready.
        """
        times, finite = [], True
        ahead = 2 * threads + 2  # batches that are made while the last ones are taken, as in a longer run
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with Prefetcher(self.world.batches, 0, count + ahead, threads) as prefetcher:
                batch, waited = prefetcher.get(), prefetcher.waited_s
                start = clock()
                for number in range(count):
                    begun = clock()
                    _, norm = step(number, batch, cfg.lr)
                    batch = prefetcher.get()
                    times.append(clock() - begun)
                    finite = finite and bool(norm.isfinite())
                share = (prefetcher.waited_s - waited) / (clock() - start)
        finally:
            torch.set_num_threads(before)
        return times, share, finite

    def _pass(self, crops: int, bf16: bool) -> None:
        """Forward and backward pass of a few crops, without an optimiser."""
        lq, hq, _, keys = (side[:crops] for side in self.world.held[0])
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16 and self.cuda):
            losses, _ = self.student.training_loss(
                lq.to(self.device), hq.to(self.device), self.student.module, reduce=False, keys=keys
            )
        losses.sum().backward()

    def _count(self) -> int:
        with FlopCounterMode(display=False) as counter:
            self._pass(2, bf16=True)
        return counter.get_total_flops()

    def _accumulate(self, bf16: bool, ddp: bool) -> int:
        """The smallest power of two for `training.accumulate` whose parts fit the GPU, by the memory of a crop."""
        if not self.cuda:
            return 1
        weights = 4 * self.parameters
        if bf16 not in self._per_crop:
            peaks = []
            for crops in (1, 1, 2):  # the first pass leaves the gradients where they stay
                torch.cuda.reset_peak_memory_stats()
                self._pass(crops, bf16)
                peaks.append(torch.cuda.max_memory_allocated())
            self._per_crop[bf16] = max(peaks[2] - peaks[1], 1.0)
        _free(self.student.module)
        state = (5 if ddp else 4) * weights  # gradients, two means of Adam, the average; the buckets of DDP
        cast = weights / 2 if bf16 else 0
        room = ROOM * torch.cuda.get_device_properties(self.device).total_memory
        room -= torch.cuda.memory_allocated() + state + cast
        parts = self.shapes.batch * self._per_crop[bf16] / max(room, 1.0)
        return min(self.shapes.batch, 2 ** max(0, math.ceil(math.log2(parts))))


@contextmanager
def _joined(module: nn.Module, device: torch.device, ddp: bool) -> Iterator[nn.Module]:
    if not ddp:
        yield module
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        # Ray Train leaves a world of one without DDP; with more workers it wraps like this.
        where: dict[str, Any] = {"device_ids": [device.index or 0]} if device.type == "cuda" else {}
        yield DistributedDataParallel(module, find_unused_parameters=True, **where)
    finally:
        dist.destroy_process_group()


def _free(module: nn.Module) -> None:
    """Drop gradients, and what the last row left in memory."""
    module.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

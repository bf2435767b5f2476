"""The teacher's table: every case of one GPU in one process, the most telling first, against goals.

See `tests/benchmarks/README.md`, "The teacher". `tests.benchmarks.teacher` runs it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gmd_ray.config import InjectionConfig
from gmd_ray.teachers.acceleration.compilation import compile_blocks
from gmd_ray.teachers.acceleration.float8 import quantize
from gmd_ray.teachers.acceleration.graphs import CudaRecorder, ForwardGraphs
from gmd_ray.teachers.cost.flops import projection_cost
from gmd_ray.teachers.cost.workload import TeacherFiles, Workload
from gmd_ray.teachers.flux.latents import image_ids, pack, unpack
from gmd_ray.teachers.flux.teacher import FluxTeacher
from tests.benchmarks.eager_projection import project_eagerly, stock_model
from tests.benchmarks.gpu.alone import attention_alone, autoencoder_alone, checks_alone, host_alone, products_alone
from tests.benchmarks.gpu.sections import Sections, clock
from tests.teachers.acceleration.replayed import TapeRecorder

GOAL_SHARE = 0.85
"""Share of the ceiling that a compiled projection is to reach."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of the table."""

    small: int
    """Side of the usual image in pixels."""
    large: int
    many: int
    """Images of the larger batch."""
    steps: int
    compiles: bool = True
    """False leaves the blocks as they are, for a look at the code: compiling takes a CPU minutes."""


FULL = Shapes(512, 1024, 4, 25)
TINY = Shapes(64, 96, 2, 2, compiles=False)


class Table:
    """The cases of one teacher, which they share with all its weights."""

    def __init__(self, teacher: FluxTeacher, shapes: Shapes, sections: Sections, ceiling: float) -> None:
        self.teacher, self.shapes, self.sections, self.ceiling = teacher, shapes, sections, ceiling
        self.files = TeacherFiles.read(Path(teacher.cfg.path or ""))
        self.stock: Any = stock_model(teacher)  # before the blocks are compiled
        self.cuda = teacher.device.type == "cuda"
        self.seconds: dict[str, float] = {}
        self.pixels: dict[str, torch.Tensor] = {}

    def images(self, batch: int, side: int) -> tuple[torch.Tensor, list[str]]:
        generator = torch.Generator().manual_seed(side + batch)
        return torch.rand(batch, 3, side, side, generator=generator), [str(i) for i in range(batch)]

    def flops(self, batch: int, side: int, *, plain: bool = False) -> int:
        """FLOPs of a projection, the autoencoder included; a plain one projects keys and values that it replaces."""
        cfg = replace(self.teacher.cfg, injection=InjectionConfig(steps=0)) if plain else self.teacher.cfg
        cost = projection_cost(Workload.from_config(self.files, cfg, batch, side, side))
        return cost.flops + cost.codec_flops

    def case(self, label: str, batch: int, side: int, repeats: int = 1, *, plain: bool = False) -> float:
        """Time whole projections after a short one, print a row, and return the best seconds of a batch."""
        teacher, (images, ids) = self.teacher, self.images(batch, side)
        name = f"{label}, {side} px, batch {batch}"

        def run() -> torch.Tensor:
            if plain:
                return project_eagerly(teacher, self.stock, teacher.blocks, teacher.inject_steps, images)
            return teacher.project(images, ids)

        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        begun = clock()
        with steps(teacher, 2):
            run()
        first, times = clock() - begun, []
        for _ in range(repeats):
            begun = clock()
            pixels = run()
            times.append(clock() - begun)
        best = min(times)
        flops = self.flops(batch, side, plain=plain)
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.cuda else 0.0
        planned = teacher.memory(batch, side, side).device / 1e9
        self.sections.keep(
            name, batch=batch, side=side, seconds=times, flops=flops, peak_gb=peak, planned_gb=planned,
            first_2_steps_s=first, finite=bool(pixels.isfinite().all()),
        )  # fmt: skip
        self.sections.say(
            f"| {name} | {batch / best:.3f} images/s | {best:.3f} s | {flops / best / 1e12:.3g} TFLOP/s | "
            f"{100 * flops / best / self.ceiling:.0f} % | peak {peak:.1f} GB, planned {planned:.1f} | first 2 steps "
            f"{first:.1f} s |"
        )
        self.seconds[name], self.pixels[name] = best, pixels
        return best

    def compare(self, label: str, other: str, side: int, batch: int) -> None:
        """Print how many times as fast one case is as another, and how far its pixels are from the other's."""
        ours, theirs = f"{label}, {side} px, batch {batch}", f"{other}, {side} px, batch {batch}"
        if ours not in self.seconds or theirs not in self.seconds:
            return
        gap = (self.pixels[ours] - self.pixels[theirs]).abs()
        ratio = self.seconds[theirs] / self.seconds[ours]
        self.sections.keep(f"{label} against {other}", side=side, batch=batch, ratio=ratio, gap=gap.max().item())
        self.sections.say(
            f"{ours}: {ratio:.2f} times as fast as {other}; pixels differ by {gap.max().item():.1e} at most, "
            f"{gap.mean().item():.1e} on average"
        )

    def issue(self, label: str, batch: int, side: int, count: int = 6) -> None:
        """The time that the host needs to issue a forward, and the time until the GPU is done with it."""
        teacher = self.teacher
        z = torch.randn(batch, (side // teacher.multiple) ** 2, teacher.model.config.in_channels, device=teacher.device)
        edge = 2 * side // teacher.multiple
        args = (z, 0.5, image_ids(edge, edge, teacher.device), teacher.prompt, teacher.cfg.guidance)
        with torch.no_grad():
            teacher.projector.velocity(*args)
            begun = clock()
            for _ in range(count):
                teacher.projector.velocity(*args)
            issued = (time.perf_counter() - begun) / count
            done = (clock() - begun) / count
        self.sections.keep(f"issue {label}", batch=batch, side=side, host_s=issued, done_s=done)
        self.sections.say(
            f"a forward, {label}, {side} px, batch {batch}: host {1e3 * issued:.2f} ms, done {1e3 * done:.2f} ms"
        )

    def stages(self, label: str, side: int) -> None:
        """The time of each part of one projection of a single image."""
        teacher, found, last = self.teacher, {}, clock()

        def mark(name: str) -> None:
            nonlocal last
            now = clock()
            found[name], last = now - last, now

        with torch.no_grad():
            images = self.images(1, side)[0].to(teacher.device)
            memory = teacher.memory(1, side, side)
            mark("plan and copy")
            z = teacher.codec.encode(images * 2 - 1)
            mark("encode")
            h, w = z.shape[-2:]
            ids, plan = image_ids(h, w, z.device), teacher._plan(h * w // 4, memory)
            noise, kept = teacher.projector.invert(pack(z), ids, plan)
            mark("inversion")
            tokens = teacher.projector.reconstruct(noise, kept, ids, plan)
            mark("reconstruction")
            teacher.codec.decode(unpack(tokens, h, w))
            mark("decode")
        self.sections.keep(f"stages {label}", side=side, **found)
        parts = ", ".join(f"{name} {1e3 * t:.1f} ms" for name, t in found.items())
        self.sections.say(f"stages, {label}, {side} px: {parts}")

    def profile(self, label: str, side: int, out: Path | None) -> None:
        """The kernels of one projection of one image, by name, and how long the device was busy with them."""
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as profiler

        images, ids = self.images(1, side)
        activity = ProfilerActivity.CUDA if self.cuda else ProfilerActivity.CPU
        place = DeviceType.CUDA if self.cuda else DeviceType.CPU
        begun = clock()
        with profiler(activities=[activity], acc_events=True) as found:
            self.teacher.project(images, ids)
            wall = clock() - begun
        by_name: dict[str, list[float]] = defaultdict(list)
        for event in found.events():
            if event.device_type == place:  # the host's calls are events too
                by_name[event.name].append(event.time_range.end - event.time_range.start)
        busy = sum(sum(times) for times in by_name.values())
        lines = [
            f"{sum(times) / 1e3:9.2f} ms {100 * sum(times) / busy:5.1f} % {len(times):6d} calls  {name[:120]}"
            for name, times in sorted(by_name.items(), key=lambda item: -sum(item[1]))[:60]
        ]
        if out is not None:
            (out / "profile.txt").write_text("\n".join(lines) + "\n")
        total = f"{busy / 1e3:.0f} ms in {sum(map(len, by_name.values()))} kernels of {1e3 * wall:.0f} ms, watched"
        self.sections.say("\n".join([f"kernels, {label}, {side} px: {total}", *lines[:14]]))

    def missing(self) -> None:
        """Print what each goal lacks, also where its case was skipped or failed."""
        for batch, side in ((1, self.shapes.small), (1, self.shapes.large), (self.shapes.many, self.shapes.small)):
            name, lacks = f"recorded, {side} px, batch {batch}", "not measured"
            wanted, reached = self.flops(batch, side) / self.ceiling / GOAL_SHARE, self.seconds.get(name)
            if reached is not None:
                lacks = f"is {reached:.2f} s: " + (
                    "reached" if reached <= wanted else f"{reached - wanted:.2f} s too slow"
                )
            self.sections.keep(f"goal {name}", reached=reached, wanted=wanted)
            self.sections.say(f"GOAL {name}: {wanted:.2f} s at {GOAL_SHARE:.0%} of the ceiling, {lacks}")


@contextmanager
def steps(teacher: FluxTeacher, count: int) -> Iterator[None]:
    """The same teacher with another number of intervals."""
    cfg, injected = teacher.cfg, teacher.inject_steps
    teacher.cfg, teacher.inject_steps = replace(cfg, steps=count), min(injected, count)
    try:
        yield
    finally:
        teacher.cfg, teacher.inject_steps = cfg, injected


def caches(table: Table, literal: InjectionConfig) -> None:
    """gmd-literal with its cache on the device and in host memory: equal pixels, and the price of the way."""
    teacher, side = table.teacher, table.shapes.small
    kept = teacher.cfg, teacher._memory_cfg, teacher._budget, teacher.blocks, teacher.inject_steps
    count = min(10, table.shapes.steps)
    injection = replace(literal, steps=count)
    try:
        teacher.blocks, teacher.inject_steps = teacher.model.block_names(), count
        for where in ("device", "host"):
            change = {"steps": count, "injection": injection, "cache_location": where}
            teacher.cfg, teacher._memory_cfg = replace(kept[0], **change), replace(kept[1], **change)
            if where == "host" and table.cuda:
                # As much memory as two banks beside the rest take, so that the others wait on the host.
                plan = teacher.memory(1, side, side)
                bank = plan.cached // plan.resident
                teacher._budget = replace(kept[2], device=int((plan.device - plan.cached + 2.2 * bank) / 0.94))
            table.case(f"gmd-literal of {count} steps, cache on the {where}", 1, side, 2)
        label = f"gmd-literal of {count} steps, cache on the "
        table.compare(f"{label}host", f"{label}device", side, 1)
    finally:
        teacher.cfg, teacher._memory_cfg, teacher._budget, teacher.blocks, teacher.inject_steps = kept


def run_table(
    teacher: FluxTeacher,
    shapes: Shapes,
    sections: Sections,
    ceiling: float,
    literal: InjectionConfig,
    out: Path | None = None,
) -> Table:
    """All cases. The teacher's blocks are compiled, and at the end in 8 bits."""
    table, small, large, many = Table(teacher, shapes, sections, ceiling), shapes.small, shapes.large, shapes.many
    section, model = sections.section, teacher.model
    with section("512 px, batch 1, uncompiled and plain", 20) as on:
        if on:
            table.case("uncompiled", 1, small, 2)
            table.issue("uncompiled", 1, small)
            table.case("plain loop", 1, small, plain=True)
            table.compare("uncompiled", "plain loop", small, 1)
    for name, alone in (
        ("attention", attention_alone), ("products", products_alone), ("autoencoder", autoencoder_alone),
        ("host memory", host_alone),
    ):  # fmt: skip
        with section(name, 4) as on:
            if on:
                alone(table)
    with section("caches", 25) as on:
        if on:
            caches(table, literal)
    with section("512 px, batch 4, uncompiled", 20) as on:
        if on:
            table.case("uncompiled", many, small)
    with section("kernel checks", 15) as on:
        if on:
            checks_alone(table)
    if shapes.compiles:
        compile_blocks(model)
    with section("512 px, batch 1, compiled", 45) as on:
        if on:
            table.case("compiled", 1, small, 2)
            table.compare("compiled", "uncompiled", small, 1)
            table.compare("compiled", "plain loop", small, 1)
            table.issue("compiled", 1, small)
            table.stages("compiled", small)
    # From here on as a run has it: a forward is repeated as one CUDA graph.
    recorder = CudaRecorder(teacher.device) if table.cuda else TapeRecorder()
    teacher.projector.graphs = ForwardGraphs(recorder)
    teacher._memory_cfg = replace(teacher._memory_cfg, compile=True)  # plans the memory of recordings
    with section("512 px, batch 1, recorded", 10) as on:
        if on:
            table.case("recorded", 1, small, 2)
            table.compare("recorded", "compiled", small, 1)
            table.stages("recorded", small)
    with section("1024 px, batch 1, recorded", 20) as on:
        if on:
            table.case("recorded", 1, large)
            table.stages("recorded", large)
    with section("512 px, batch 4, recorded", 45) as on:
        if on:
            table.case("recorded", many, small)
            table.compare("recorded", "uncompiled", small, many)
    with section("profile", 12) as on:
        if on:
            table.profile("recorded", small, out)
    with section("8 bits, compiled", 60) as on:
        if on:
            table.stock = None  # it holds the weights in bfloat16
            teacher.cfg, teacher._memory_cfg = (replace(c, precision="fp8") for c in (teacher.cfg, teacher._memory_cfg))
            quantize(model, ("transformer_blocks", "single_transformer_blocks"), teacher.device)
            teacher.projector.graphs = ForwardGraphs(recorder)  # a recording has the weights of its time
            table.case("fp8 products", 1, small)
            table.compare("fp8 products", "recorded", small, 1)
            table.case("fp8 products", many, small)
            table.compare("fp8 products", "recorded", small, many)
    table.missing()
    return table

"""Stage 2 and restoring with the published students, on one GPU within minutes.

    python -m tests.benchmarks.gpu.students [--seconds 120] [--out DIR] [--only swinir ldm compile restoring whole]
    python -m tests.benchmarks.gpu.students --tiny      # narrow students of the same classes, for a look at the code

Without Ray: the project's own step (`gmd_ray.training.worker.step`), loaders and export, with random weights. SwinIR x2
has 11.75 million parameters, ldm-1.3b has 1.28 billion; both take batches of 32 crops of 128 LQ pixels, nine tenths of
them source pairs. A row is the median step after two for warm-up, on data in memory unless it names loaders: ms, images
a second, TFLOP/s as `torch.utils.flop_counter.FlopCounterMode` counts them (matrix products, convolutions and attention
of forward and backward pass, and of the autoencoder's encoding), their share of a bfloat16 matmul measured in the same
run, the share of the time that was spent waiting for data, and peak memory. The third column is `training.accumulate`,
the smallest power of two at which the step fits the GPU.

Compilation is timed with a student of the same width and fewer layers, against the same one uncompiled, and at the end
with the whole student where the time suffices.
"""

from __future__ import annotations

import argparse
import functools
import gc
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import diffusers
import torch

from tests.benchmarks.gpu.restoring import RestoringTable
from tests.benchmarks.gpu.sections import Sections
from tests.benchmarks.gpu.student_models import Recipe, recipes
from tests.benchmarks.gpu.training_step import StepShapes, StepTable, World
from tests.benchmarks.teacher import matmul_ceiling

PARTS = ("swinir", "ldm", "compile", "restoring", "whole")


@dataclass(frozen=True)
class Sizes:
    """Sizes of a run."""

    training: StepShapes
    photo: int
    """Side of the restored photos in pixels."""
    photos: int
    """Photos of the larger batch."""
    seconds: float
    """Time of a row of restoring after its warm-up."""


FULL = Sizes(StepShapes(batch=32, patch=128, side=512, pairs=12, seconds=2.0), photo=512, photos=4, seconds=1.5)
TINY = Sizes(StepShapes(batch=4, patch=16, side=64, pairs=4, seconds=0.05, loaders=(1,)), 32, 2, 0.05)


class Run:
    """The sections of one run, which share the data on disk."""

    def __init__(self, sizes: Sizes, sections: Sections, ceiling: float, folder: Path, device: torch.device) -> None:
        self.sizes, self.sections, self.ceiling = sizes, sections, ceiling
        self.folder, self.device = folder, device
        self._worlds: dict[int, World] = {}

    def steps(self, recipe: Recipe) -> None:
        """Rows of training without compilation."""
        name, table = recipe.name, None
        with self._section(f"{name}: steps", 25) as on:
            if on:
                table = self._table(recipe)
                table.row("bf16", bf16=True)
                table.row("float32", bf16=False)
                table.compare("bf16", "float32")
        for threads in self.sizes.training.loaders:
            with self._section(f"{name}: loaders, {threads}", 9) as on:
                if on and table is not None:
                    table.row(f"bf16, loaders of {threads} CPUs", bf16=True, threads=threads)
        with self._section(f"{name}: DDP of one", 9) as on:
            if on and table is not None:
                table.row("bf16, DDP of one", bf16=True, ddp=True)
                table.compare("bf16, DDP of one", "bf16")
        del table
        _free()

    def compiled(self, recipe: Recipe, needs_s: float) -> None:
        """The same steps uncompiled and compiled."""
        with self._section(f"{recipe.name}: compilation", needs_s) as on:
            if on:
                table = self._table(recipe)
                table.row("bf16", bf16=True)
                table.row("bf16, compiled", bf16=True, compiled=True)
                table.compare("bf16, compiled", "bf16")
        torch._dynamo.reset()
        _free()

    def restoring(self, recipe: Recipe, needs_s: float) -> None:
        """Rows of restoring."""
        with self._section(f"{recipe.name}: restoring", needs_s) as on:
            if on:
                folder = Path(tempfile.mkdtemp(dir=self.folder))
                table = RestoringTable(recipe, folder, self.sizes.photo, self.sizes.seconds, self.sections, self.device)
                for dtype in ("float32", "bfloat16"):
                    for batch in (1, self.sizes.photos):
                        table.row(batch, dtype)
                table.own_masks()
                table.files(self.sizes.photos, "bfloat16")
        _free()

    def _section(self, name: str, needs_s: float) -> AbstractContextManager[bool]:
        return self.sections.section(name, needs_s if self.device.type == "cuda" else 0.0)

    def _table(self, recipe: Recipe) -> StepTable:
        sizes = self.sizes.training
        if recipe.scale not in self._worlds:
            place = Path(tempfile.mkdtemp(dir=self.folder))
            self._worlds[recipe.scale] = World(place, recipe.scale, sizes, self.device.type == "cuda")
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        student = recipe.load(recipe.write(folder), self.device)
        return StepTable(recipe.name, student, self._worlds[recipe.scale], sizes, self.sections, self.ceiling)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run_all(run: Run, scale: int, tiny: bool, only: list[str]) -> None:
    """Run the parts in order, the most telling first.

    Args:
        run: the sections.
        scale: scale of the SwinIR.
        tiny: narrow students.
        only: parts to run, of `PARTS`.
    """
    swinir, ldm = recipes(scale, tiny)
    if "swinir" in only:
        run.steps(swinir)
    if "ldm" in only:
        run.steps(ldm)
    if "compile" in only:
        for recipe in (swinir, ldm):
            run.compiled(recipe.cut(), 15)
    if "restoring" in only:
        run.restoring(swinir, 20)
        run.restoring(ldm, 30)
    if "whole" in only and not tiny:
        for recipe in (swinir, ldm):
            run.compiled(replace(recipe, name=f"{recipe.name}, whole"), 70)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="imports not counted; default: 120, and 900 with --tiny")
    parser.add_argument("--out", type=Path, help="folder for results.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--scale", type=int, choices=(1, 2), default=2, help="of the SwinIR")
    parser.add_argument("--tiny", action="store_true", help="narrow students on the CPU")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here; --tiny runs narrow students on the CPU")
    device = torch.device("cpu" if args.tiny else "cuda")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    sections = Sections(args.seconds or (900 if args.tiny else 120), args.out)
    ceiling = matmul_ceiling(device, 0.05 if args.tiny else 0.7)
    name = "CPU" if args.tiny else torch.cuda.get_device_name(device)
    sections.keep("ceiling", flops=ceiling, device=name, torch=torch.__version__, diffusers=diffusers.__version__)
    sections.say(
        f"{name}; torch {torch.__version__}, diffusers {diffusers.__version__}; ceiling {ceiling / 1e12:.4g} TFLOP/s"
    )
    sections.say("| student | row | accumulate | step | images/s | TFLOP/s | of ceiling | data wait | peak | |")
    # A CPU would take minutes to generate code; tracing alone checks that the step can be compiled.
    backend = functools.partial(torch.compile, backend="aot_eager") if args.tiny else torch.compile
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(torch, "compile", backend):
        run = Run(TINY if args.tiny else FULL, sections, ceiling, Path(folder), device)
        run_all(run, args.scale, args.tiny, args.only)
    if sections.failed:
        raise SystemExit(f"failed: {', '.join(sections.failed)}")


if __name__ == "__main__":
    main()

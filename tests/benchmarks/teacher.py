"""Speed of the teacher against the floor of the hardware.

    python -m tests.benchmarks.teacher
    python -m tests.benchmarks.teacher compare [--size 512 1024] [--batch 1 4]

On one GPU, without Ray: FLUX.1-dev at full size with random weights, made on the GPU and never written, projected by
`FluxTeacher.project` and by the eager loop of `eager_projection.py`. Without a GPU, or with --tiny: a model as deep and
96 times as narrow, by the same code.

The first command runs the whole table of cases in one process within --seconds, the most telling first, and prints
what each goal lacks (`gpu/table.py`). `compare` measures chosen settings against the eager loop: a table of images/s,
TFLOP/s (counted by gmd_ray.teachers.cost.flops) against the matmul ceiling measured in the same run, peak memory, and
the two paths' ratio and greatest difference in pixels.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.config.load import load_config
from gmd_ray.teachers.acceleration.compilation import compile_blocks
from gmd_ray.teachers.cost.dimensions import FluxDimensions, Injection
from gmd_ray.teachers.cost.flops import projection_cost
from gmd_ray.teachers.cost.memory import Budget
from gmd_ray.teachers.cost.workload import TeacherFiles, Workload
from gmd_ray.teachers.flux.families.flux1 import InjectingFlux
from gmd_ray.teachers.flux.teacher import FluxTeacher
from tests.benchmarks.eager_projection import project_eagerly, stock_model

FLUX_DEV = {
    "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24,
    "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True, "axes_dims_rope": [16, 56, 56],
}  # fmt: skip
TINY = {
    **FLUX_DEV, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32,
    "pooled_projection_dim": 16, "axes_dims_rope": [4, 6, 6],
}  # fmt: skip
VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 16, "norm_num_groups": 32,
    "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
TINY_VAE = {**VAE, "block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4}
METHODS = ("none", "gmd", "gmd-literal", "rf-solver", "kv-edit", "vital")


def injections(steps: int) -> dict[str, InjectionConfig]:
    """Injections of the methods of `teacher.preset`, all measured under Euler."""
    found = {name: load_config([f"teacher.preset={name}"]).teacher.injection for name in METHODS}
    return {name: replace(i, steps=steps if i.steps is None else min(i.steps, steps)) for name, i in found.items()}


@dataclass(frozen=True)
class Measured:
    seconds: float
    """For one batch."""
    peak: int | None
    """Bytes of GPU memory, None on CPU."""
    pixels: torch.Tensor


@contextmanager
def random_teacher(device: torch.device, text: int) -> Iterator[FluxTeacher]:
    """A teacher loaded by its own code, but for the weights: random ones appear where they would be read."""
    full = device.type == "cuda"
    transformer, vae = (FLUX_DEV, VAE) if full else (TINY, TINY_VAE)

    def make(cls: Any, config: dict[str, Any]) -> Callable[..., torch.nn.Module]:
        def from_pretrained(path: Path, *, torch_dtype: torch.dtype, **_: Any) -> torch.nn.Module:
            default = torch.get_default_dtype()
            torch.set_default_dtype(torch_dtype)
            try:
                with device:
                    return cls(**config)
            finally:
                torch.set_default_dtype(default)

        return from_pretrained

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        files = {
            "transformer/config.json": {"_class_name": "FluxTransformer2DModel", **transformer},
            "vae/config.json": {"_class_name": "AutoencoderKL", **vae},
            "scheduler/scheduler_config.json": {"use_dynamic_shifting": True},
        }
        for name, content in files.items():
            (path / name).parent.mkdir()
            (path / name).write_text(json.dumps(content))
        embeds = torch.randn(text, transformer["joint_attention_dim"])
        pooled = torch.randn(transformer["pooled_projection_dim"])
        save_file({".prompt_embeds": embeds, ".pooled": pooled}, path / "prompt_embeddings.safetensors")
        with (
            mock.patch.object(InjectingFlux, "from_pretrained", make(InjectingFlux, transformer)),
            mock.patch.object(AutoencoderKL, "from_pretrained", make(AutoencoderKL, vae)),
        ):
            cfg = TeacherConfig(path=folder, device=str(device), injection=InjectionConfig(steps=0))
            yield FluxTeacher(replace(cfg, max_sequence_length=text))


def with_settings(teacher: FluxTeacher, steps: int, injection: InjectionConfig, **change: Any) -> FluxTeacher:
    """The same weights under other settings, and the memory that was free before they were there."""
    cfg = replace(teacher.cfg, steps=steps, injection=injection, **change)
    tables = teacher.projector.modulation
    assert tables is not None
    tables.restore()
    with (
        mock.patch.object(InjectingFlux, "from_pretrained", return_value=teacher.model),
        mock.patch.object(AutoencoderKL, "from_pretrained", return_value=teacher.codec.vae),
        mock.patch.object(Budget, "of", return_value=teacher._budget),
    ):
        return FluxTeacher(cfg)


def matmul_ceiling(device: torch.device, seconds: float = 3.0) -> float:
    """FLOP/s of a large square matmul in the teacher's precision, the median after a warm-up of the same length."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < 2 * seconds:
        begun = clock(device)
        for _ in range(8):
            a @ b
        times.append(clock(device) - begun)
    times = sorted(times[len(times) // 2 :])
    return 8 * 2 * side**3 / times[len(times) // 2]


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(device: torch.device, repeats: int, project: Callable[[], torch.Tensor]) -> Measured | None:
    """The median of `repeats` after one warm-up; None where memory does not suffice."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        pixels, times = project(), []
        for _ in range(repeats):
            begun = clock(device)
            project()
            times.append(clock(device) - begun)
    except torch.OutOfMemoryError:
        return None
    return Measured(sorted(times)[repeats // 2], torch.cuda.max_memory_allocated(device) if cuda else None, pixels)


def row(label: str, found: Measured | None, batch: int, flops: int, ceiling: float, note: str) -> str:
    if found is None:
        return f"| {label} | out of memory | | | | |"
    rate = flops / found.seconds
    peak = "-" if found.peak is None else f"{found.peak / 1e9:.1f}"
    images = f"{batch / found.seconds:.3g}"
    return f"| {label} | {images} | {rate / 1e12:.3g} | {100 * rate / ceiling:.0f} % | {peak} | {note} |"


def main() -> None:
    cuda = torch.cuda.is_available()
    names = list(injections(1))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["table", "compare"], default="table")
    parser.add_argument("--tiny", action="store_true", help="the narrow model on the CPU, for a look at the code")
    parser.add_argument("--seconds", type=float, default=262.0, help="of the table, imports not counted")
    parser.add_argument("--out", type=Path, help="folder for results.json and profile.txt of the table")
    parser.add_argument("--size", type=int, nargs="+", default=[512, 1024] if cuda else [64], help="multiples of 16")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4] if cuda else [1, 2])
    parser.add_argument("--injection", nargs="+", choices=names, default=["gmd", "gmd-literal"])
    parser.add_argument("--steps", type=int, default=25 if cuda else 2)
    parser.add_argument("--text", type=int, default=512 if cuda else 16, help="text tokens")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="compile the repeated blocks of the project's path")
    parser.add_argument("--attention", help="attention backend of the project's path, by diffusers' name")
    parser.add_argument("--cache", choices=["kv", "input", "lockstep"], default="kv")
    parser.add_argument("--cache-location", choices=["auto", "device", "host"], default="auto")
    parser.add_argument("--cache-dtype", choices=["same", "fp8"], default="same")
    parser.add_argument("--modulation", choices=["auto", "device", "host"], default="auto")
    parser.add_argument("--offload", choices=["none", "group"], default="none")
    parser.add_argument("--precision", choices=["same", "fp8"], default="same")
    parser.add_argument("--no-eager", action="store_true", help="leave the eager loop out")
    args = parser.parse_args()
    if len(args.injection) > 1 and (args.offload, args.precision) != ("none", "same"):
        parser.error("--offload and --precision are done to the weights once: give a single --injection with them")

    device = torch.device("cuda" if cuda and not args.tiny else "cpu")
    if args.what == "table":
        table(device, args)
        return
    ceiling = matmul_ceiling(device)
    machine = torch.cuda.get_device_name(device) if cuda else f"{platform.processor() or platform.machine()} CPU"
    print(
        f"{machine}; torch {torch.__version__}, diffusers {diffusers.__version__}; {args.steps} steps, {args.text} text"
    )
    print(
        f"tokens; compile {args.compile}, attention {args.attention or 'default'}; ceiling {ceiling / 1e12:.3g} TFLOP/s"
    )
    print(
        "\n| path | images/s | TFLOP/s | of ceiling | peak GB | against eager |\n| --- | --- | --- | --- | --- | --- |"
    )
    with random_teacher(device, args.text) as base:
        # Before the blocks are compiled: the stock model shares weights, not code.
        stock = stock_model(base)
        if args.compile:
            compile_blocks(base.model)
        settings = {
            "cache": args.cache, "cache_location": args.cache_location, "cache_dtype": args.cache_dtype,
            "modulation": args.modulation, "attention_backend": args.attention, "offload": args.offload,
            "precision": args.precision,
        }  # fmt: skip
        size = FluxDimensions.from_config(dict(base.model.config))
        teacher = base
        for name in args.injection:
            teacher = with_settings(teacher, args.steps, injections(args.steps)[name], **settings)
            for side in args.size:
                for batch in args.batch:
                    compare(args, teacher, stock, size, ceiling, name, side, batch)


def table(device: torch.device, args: argparse.Namespace) -> None:
    """Run the whole table; see `gpu.table`."""
    from tests.benchmarks.gpu.sections import Sections
    from tests.benchmarks.gpu.table import FULL, run_table
    from tests.benchmarks.gpu.table import TINY as SMALL

    full = device.type == "cuda"
    shapes = FULL if full else SMALL
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    sections = Sections(args.seconds, args.out)
    ceiling = matmul_ceiling(device, 0.7 if full else 0.05)
    name = torch.cuda.get_device_name(device) if full else "CPU"
    sections.keep("ceiling", flops=ceiling, device=name, torch=torch.__version__, diffusers=diffusers.__version__)
    sections.say(
        f"{name}; torch {torch.__version__}, diffusers {diffusers.__version__}; ceiling {ceiling / 1e12:.4g} TFLOP/s"
    )
    known = injections(shapes.steps)
    with random_teacher(device, 512 if full else 16) as base:
        teacher = with_settings(base, shapes.steps, known["gmd"])
        run_table(teacher, shapes, sections, ceiling, known["gmd-literal"], args.out)
    if sections.failed:
        raise SystemExit(f"failed: {', '.join(sections.failed)}")


def compare(
    args: argparse.Namespace, teacher: FluxTeacher, stock: Any, size: FluxDimensions, ceiling: float,
    name: str, side: int, batch: int,
) -> None:  # fmt: skip
    """Measure both paths on one shape and print their rows."""
    injection = Injection.from_config(teacher.cfg, size)
    shape = {"batch": batch, "height": side, "width": side, "text": args.text, "steps": args.steps}
    plain = projection_cost(Workload(size, **shape)).flops
    files = TeacherFiles.read(Path(teacher.cfg.path or ""))
    cost = projection_cost(Workload.from_config(files, teacher.cfg, batch, side, side))
    done = cost.flops + cost.codec_flops
    plain += cost.codec_flops
    images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(side + batch))
    ids = [str(i) for i in range(batch)]
    label = f"{name}, {side}, batch {batch}"
    memory = teacher.memory(batch, side, side)
    where = memory.cache if memory.cache == "lockstep" else f"{memory.cache} on {memory.cache_location}"

    ours = measure(teacher.device, args.repeats, lambda: teacher.project(images, ids))
    eager = None
    if not args.no_eager:
        steps = injection.steps
        eager = measure(
            teacher.device, args.repeats, lambda: project_eagerly(teacher, stock, teacher.blocks, steps, images)
        )
    note = f"planned {memory.device / 1e9:.2f} GB, {where}"
    if ours and eager:
        gap = (ours.pixels - eager.pixels).abs().max().item()
        note += f"; {eager.seconds / ours.seconds:.2f} times as fast, differs by {gap:.1e}"
    print(row(label, ours, batch, done, ceiling, note), flush=True)
    if not args.no_eager:
        print(row(f"{label}, eager", eager, batch, plain, ceiling, ""), flush=True)


if __name__ == "__main__":
    main()

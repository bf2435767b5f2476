"""The price of a lower precision and of a step cache in pixels, with a teacher that was trained on photographs.

    python -m tests.benchmarks.precision FOLDER [--count 8] [--side 64] [--only TEXT]

Crops from the middle of the photos in FOLDER are projected in float32, in bfloat16, with products in 8 bits
(`teacher.precision=fp8`, over float32 and over bfloat16), and in float32 with step caches of several thresholds
(`teacher.step_cache`), by the demo's teacher of 16.6 million parameters. Prints the distance of each from float32, in
gray levels of 255, for 8 bits over bfloat16 also from bfloat16, beside the distance by which the projection moves
pixels at all, and for a step cache the share of evaluations that it skipped. On a CPU the products in 8 bits are
emulated: the same rounded numbers, multiplied in float32.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch

import gmd_ray
from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.encode import to_tensor
from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.flux.teacher import FluxTeacher

TEACHER = Path(gmd_ray.__file__).parent / "demo" / "photos" / "weights" / "teacher"
VARIANTS = {
    "bfloat16": {"dtype": "bfloat16"},
    "fp8 products over float32": {"precision": "fp8"},
    "fp8 products over bfloat16": {"dtype": "bfloat16", "precision": "fp8"},
    **{f"step cache {threshold:g}": {"step_cache": threshold} for threshold in (0.05, 0.07, 0.1, 0.2)},
}


def crops(folder: Path, count: int, side: int) -> torch.Tensor:
    """Squares from the middle of the first photos, (count, 3, side, side)."""
    found = []
    for file in sorted(folder.iterdir())[:count]:
        image = to_tensor([decode_image(file.read_bytes())])
        top, left = (image.shape[-2] - side) // 2, (image.shape[-1] - side) // 2
        found.append(image[..., top : top + side, left : left + side])
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", metavar="TEXT", help="the variants whose name contains TEXT")
    args = parser.parse_args()
    x = crops(args.folder, args.count, args.side)
    injection = InjectionConfig(blocks="single", steps=min(5, args.steps))
    cfg = TeacherConfig(
        path=str(TEACHER), steps=args.steps, injection=injection, device=args.device, dtype="float32", compile=False
    )
    ids = [str(i) for i in range(len(x))]
    exact = load_teacher(cfg).project(x, ids)
    print(f"{len(x)} crops of {args.side} pixels, {args.steps} steps; the projection moves pixels by", _gap(exact, x))
    of_bfloat16 = None
    for name, change in VARIANTS.items():
        if args.only not in name:
            continue
        teacher = load_teacher(replace(cfg, **change))
        assert isinstance(teacher, FluxTeacher)
        found = teacher.project(x, ids)
        skipped = f"; {teacher.step_cache.count}" if teacher.step_cache else ""
        print(f"{name}: from float32 {_gap(found, exact)}{skipped}", flush=True)
        if name == "bfloat16":
            of_bfloat16 = found
        elif change.get("dtype") == "bfloat16" and of_bfloat16 is not None:
            print(f"{name}: from bfloat16 {_gap(found, of_bfloat16)}", flush=True)


def _gap(a: torch.Tensor, b: torch.Tensor) -> str:
    gap = (a - b).abs() * 255
    error = (a - b).square().mean().item()
    psnr = -10 * math.log10(error) if error else math.inf
    return f"{gap.mean().item():.2f} gray levels on average, {gap.max().item():.1f} at most ({psnr:.1f} dB)"


if __name__ == "__main__":
    main()

"""The strength and the share of depth of `teacher.preset=early`, on the crops on which settings are chosen.

    python -m tests.benchmarks.photographs.early --lq DIR --hq DIR [--crops 24] [--teacher DIR] [--student FILE]

Crops are restored by the student, and its output is projected by the teacher with the preset's settings but for those
of a row. The intervals have the length of `gmd`'s, 1/25 of the way. A row has the mean PSNR of the projection to the
truth, and what it has more than the preset as it is, with a 95 % interval over the crops.
"""

from __future__ import annotations

import argparse
import time

import torch

from gmd_ray.config import StudentConfig
from gmd_ray.config.load import load_config
from gmd_ray.evaluation.statistics import mean_interval
from gmd_ray.students import load_student
from gmd_ray.teachers import load_teacher
from tests.benchmarks.photographs.projections import PHOTOS, psnr, read_pairs

GRID = ((0.5, 0.5), (0.4, 0.5), (0.6, 0.5), (0.5, 0.25), (0.5, 1.0))
"""Strength and share of depth; the first are the preset's."""
INTERVALS = 25
"""Those of a full inversion by `teacher.preset=gmd`."""


def settings(strength: float, depth: float) -> list[str]:
    """The settings of a row, over those of the preset."""
    blocks = "all" if depth == 1 else f"last:{depth}"
    steps = int(INTERVALS * strength)
    return [f"teacher.strength={strength}", f"teacher.steps={steps}", f"teacher.injection.blocks={blocks}"]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lq", required=True)
    parser.add_argument("--hq", required=True)
    parser.add_argument("--teacher", default=str(PHOTOS / "teacher"))
    parser.add_argument("--student", default=str(PHOTOS / "student.safetensors"))
    parser.add_argument("--prompt", default="hq")
    parser.add_argument("--crops", type=int, default=24)
    parser.add_argument("--side", type=int, default=64, help="side of a crop in pixels")
    args = parser.parse_args()
    lq, hq = read_pairs(args.lq, args.hq, args.crops, args.side)
    restored = load_student(StudentConfig(path=args.student)).restore(lq).cpu()
    ids = [str(i) for i in range(len(lq))]
    print(f"{len(lq)} crops of {args.side}: untouched {psnr(lq, hq):.2f}, restored {psnr(restored, hq):.2f} dB")
    print("| strength, steps | share of depth | PSNR | more than the preset | CPU s a crop |\n|" + " --- |" * 5)
    base = ["teacher.preset=early", f"teacher.path={args.teacher}", f"teacher.prompt={args.prompt}"]
    first: list[float] = []
    for strength, depth in GRID:
        cfg = load_config([*base, "teacher.dtype=float32", *settings(strength, depth)]).teacher
        teacher, begun = load_teacher(cfg), time.process_time()
        projected = teacher.project(restored, ids)
        seconds = (time.process_time() - begun) / len(lq)
        values = [psnr(projected[i : i + 1], hq[i : i + 1]) for i in range(len(lq))]
        first = first or values
        gains = [a - b for a, b in zip(values, first, strict=True)]
        ends = mean_interval(gains)
        more = (
            ""
            if values is first or ends is None
            else f"{sum(gains) / len(gains):+.3f} [{ends[0]:+.3f}, {ends[1]:+.3f}]"
        )
        mean = sum(values) / len(values)
        print(f"| {strength}, {cfg.steps} | {depth} | {mean:.3f} | {more} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()

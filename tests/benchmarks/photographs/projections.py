"""The effect of inversion depth and injection on photographs, against the truth, for any teacher and folder pair.

    python -m tests.benchmarks.photographs.projections --lq DIR --hq DIR [--grid 25:1] [--teacher DIR] [--student FILE]

The first crops of two folders with equal names are restored by the student, and its output is projected by the teacher
with each setting. The teacher and the student default to those of the photographs in `gmd_ray/demo`. A cell is the mean
PSNR of the projection to the truth, and after the slash to the restored crop: a projection that returns what it was
given restores nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import gmd_ray
from gmd_ray.config import StudentConfig, TeacherConfig
from gmd_ray.config.load import load_config
from gmd_ray.images.files.decode import decode_8bit
from gmd_ray.images.listing import list_images, read_file
from gmd_ray.students import load_student
from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.directory import read_json
from gmd_ray.teachers.flux.blocks import block_names

PHOTOS = Path(gmd_ray.__file__).parent / "demo" / "photos" / "weights"
GRIDS = ("4:0.3", "6:0.6", "12:0.5", "12:1", "25:1")
"""Steps and strength of the inversion; the last are those of `teacher.preset=gmd`."""
INJECTIONS: dict[str, tuple[str, ...]] = {
    "none": ("teacher.injection.steps=0",),
    "late half of the single blocks, first fifth": ("blocks", "teacher.injection.steps=0.2"),
    "last half of depth, first fifth": ("teacher.injection.blocks=last:0.5", "teacher.injection.steps=0.2"),
    "all blocks, first fifth": ("teacher.injection.blocks=all", "teacher.injection.steps=0.2"),
    "all blocks, every step": ("teacher.injection.blocks=all", "teacher.injection.steps=null"),
    "SDEdit": ("teacher.method=sdedit", "teacher.injection.steps=0"),
}
"""Column -> settings; keys and values of image tokens. `blocks` stands for the later half of the single blocks by name,
as RF-Solver-Edit chooses them on FLUX.1-dev (20 to 37 of 38)."""


def read_pairs(lq: str, hq: str, crops: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The top left corners of the first images of both folders: (N, 3, side, side) in [0, 1], LQ and HQ."""
    sides = []
    for folder in (lq, hq):
        images = [decode_8bit(read_file(file.uri)) for file in list_images(folder, crops)]
        sides.append(torch.stack([torch.from_numpy(image[:side, :side]).permute(2, 0, 1) for image in images]))
    return sides[0].float() / 255, sides[1].float() / 255


def psnr(images: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean over images of the PSNR in dB; peak 1."""
    return float((-10 * (images - truth).square().mean(dim=(1, 2, 3)).log10()).mean())


def teacher_settings(path: str, prompt: str, given: list[str]) -> TeacherConfig:
    """The settings of one cell: those of `gmd` under a prompt, image tokens alone, and what is given."""
    base = ["teacher.preset=gmd", f"teacher.path={path}", f"teacher.prompt={prompt}", "teacher.injection.tokens=image"]
    return load_config([*base, "teacher.dtype=float32", *given]).teacher


def late_single_half(path: str) -> str:
    """The setting that names the later half of the single blocks of the model in a directory."""
    network = read_json(Path(path) / "transformer" / "config.json")
    single = block_names(network["num_layers"], network["num_single_layers"])[network["num_layers"] :]
    return f"teacher.injection.blocks=[{','.join(single[len(single) // 2 :])}]"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lq", required=True)
    parser.add_argument("--hq", required=True)
    parser.add_argument("--teacher", default=str(PHOTOS / "teacher"))
    parser.add_argument("--student", default=str(PHOTOS / "student.safetensors"))
    parser.add_argument(
        "--prompt", default="hq", help="prompt of the reconstruction; the photo teacher's are hq and lq"
    )
    parser.add_argument("--crops", type=int, default=12)
    parser.add_argument("--side", type=int, default=64, help="side of a crop in pixels")
    parser.add_argument("--presets", nargs="*", default=["gmd", "early"], help="rows of teacher.preset, as they are")
    parser.add_argument("--grid", nargs="*", default=GRIDS, metavar="STEPS:STRENGTH", help="rows of the table")
    args = parser.parse_args()
    lq, hq = read_pairs(args.lq, args.hq, args.crops, args.side)
    restored = load_student(StudentConfig(path=args.student)).restore(lq).cpu()
    ids = [str(i) for i in range(len(lq))]
    print(f"{len(lq)} crops of {args.side}: untouched {psnr(lq, hq):.2f}, restored {psnr(restored, hq):.2f} dB")

    def cell(cfg: TeacherConfig) -> str:
        projected = load_teacher(cfg).project(restored, ids)
        return f"{psnr(projected, hq):.2f} / {psnr(projected, restored):.1f}"

    if args.grid:
        blocks = late_single_half(args.teacher)
        print("| steps, strength | " + " | ".join(INJECTIONS) + " |\n|" + " --- |" * (len(INJECTIONS) + 1))
        for steps, strength in (row.split(":") for row in args.grid):
            cells = []
            for name, given in INJECTIONS.items():
                if name == "SDEdit" and float(strength) == 1:
                    cells.append("-")  # nothing of the image is left in pure noise
                    continue
                settings = [blocks if text == "blocks" else text for text in given]
                settings += [f"teacher.steps={steps}", f"teacher.strength={strength}"]
                cells.append(cell(teacher_settings(args.teacher, args.prompt, settings)))
            print(f"| {steps}, {strength} | {' | '.join(cells)} |", flush=True)
    for name in args.presets:
        overrides = [f"teacher.preset={name}", f"teacher.path={args.teacher}", f"teacher.prompt={args.prompt}"]
        cfg = load_config([*overrides, "teacher.dtype=float32"]).teacher
        if cfg.injection.blocks == "late_single":  # no block of a small teacher has such a number
            cfg.injection.blocks = "last:0.316"
        start = time.process_time()
        found = cell(cfg)
        print(f"preset {name}: {found} dB; {(time.process_time() - start) / len(lq):.2f} s of CPU a crop", flush=True)


if __name__ == "__main__":
    main()

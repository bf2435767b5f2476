"""Find the threshold that parts repairable from irreparable photos: `python -m tests.benchmarks.demo_gate [FOLDER]`.

Shoots photographs that are no target of the demo with its camera, good crops and severe ones, restores and projects
them as the demo does, and prints the quantiles of both groups' scores and the shares that thresholds put on the wrong
side. FOLDER holds JPEG photographs; the default is the demo's source photographs.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from gmd_ray.config.load import load_config
from gmd_ray.demo.photos.prepare import PHOTOGRAPHS, PhotoWorldSize, prepare
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.encode import to_tensor
from gmd_ray.quality import load_scorer
from gmd_ray.students import load_student
from gmd_ray.teachers import load_teacher

SIZE = PhotoWorldSize(seed=7, target=8, severe=4)


def main(folder: Path) -> None:
    cfg = load_config(["preset=demo"])
    student, teacher, scorer = load_student(cfg.student), load_teacher(cfg.teacher), load_scorer(cfg.scorer)

    def score(files: list[Path]) -> np.ndarray:
        scores = []
        for at in range(0, len(files), 8):
            photos = to_tensor([decode_image(file.read_bytes()) for file in files[at : at + 8]])
            restored = student.restore(photos).clamp(0, 1).mul(255).round().div(255)
            scores.append(scorer.score(teacher.project(restored, [file.stem for file in files[at : at + 8]])))
        return torch.cat(scores).numpy()

    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(folder, Path(scratch, "photographs", "target"))
        prepare(Path(scratch, "world"), SIZE, Path(scratch, "photographs"))
        files = sorted(Path(scratch, "world", "target_lq").iterdir())
        severe = score([file for file in files if "severe" in file.stem])
        good = score([file for file in files if "severe" not in file.stem])
    print("quantiles: 0, 5, 50, 95, 100 %")
    for name, scores in (("good", good), ("severe", severe)):
        print(f"{name} ({len(scores)}):", *(f"{q:.2f}" for q in np.quantile(scores, [0, 0.05, 0.5, 0.95, 1])))
    print("threshold: good below it, severe above it")
    for threshold in np.arange(4.4, 6.6, 0.2):
        print(f"{threshold:.1f}: {(good < threshold).mean():.1%}, {(severe >= threshold).mean():.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PHOTOGRAPHS / "source")

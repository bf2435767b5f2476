"""Does the demo's gain hold over training seeds? `python -m tests.benchmarks.demo_seeds [--out runs/toy] [--seeds 3]`

Takes the pair store that `make demo` left, repeats the three fine-tunes for each seed (other order, crops and flips),
and measures every student on the held-out images. Prints, for each seed and over the seeds, how far the adapted student
is ahead of the baseline and of both controls, with standard errors over images and over seeds.
"""

from __future__ import annotations

import argparse
import logging
import math
from dataclasses import replace

from gmd_ray.config.load import load_config
from gmd_ray.evaluation import evaluate
from gmd_ray.ray_utils.session import ray_session
from gmd_ray.training import finetune

REFERENCES = ("baseline", "source_only", "median")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/toy", help="a finished demo run")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("gmd_ray").setLevel(logging.INFO)
    cfg = load_config(["preset=toy", f"out={args.out}", "evaluation.metrics=[psnr,ssim]", "evaluation.report_images=0"])
    students = {"baseline": str(cfg.student.path)}
    with ray_session(cfg):
        for seed in range(args.seeds):
            for name in ("adapted", "source_only", "median"):
                students[f"{name}-{seed}"] = finetune(cfg, name, seed=seed).path
        evaluation = evaluate(replace(cfg, out=f"{cfg.out}/seeds"), students)

    print(
        "| adapted minus | data set | metric | "
        + " | ".join(f"seed {s}" for s in range(args.seeds))
        + " | over seeds |"
    )
    print("| --- " * (4 + args.seeds) + "|")
    for dataset in ("target", "source"):
        for metric in ("psnr", "ssim"):
            for reference in REFERENCES:
                cells, means = [], []
                for seed in range(args.seeds):
                    other = reference if reference == "baseline" else f"{reference}-{seed}"
                    gap = evaluation.difference(f"adapted-{seed}", dataset, metric, other)
                    assert gap is not None
                    assert gap.standard_error is not None
                    cells.append(f"{gap.mean:+.4f} ± {gap.standard_error:.4f}")
                    means.append(gap.mean)
                mean = math.fsum(means) / len(means)
                error = math.sqrt(math.fsum((m - mean) ** 2 for m in means) / max(1, len(means) - 1) / len(means))
                print(f"| {reference} | {dataset} | {metric} | {' | '.join(cells)} | {mean:+.4f} ± {error:.4f} |")


if __name__ == "__main__":
    main()

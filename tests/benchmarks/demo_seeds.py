"""Does the demo's gain hold over training seeds? `python -m tests.benchmarks.demo_seeds [--preset demo] [--seeds 3]`

Takes the pair store and the fine-tunes that the demo left, repeats those for each further seed (other order, crops and
flips), and measures every student on the held-out images. Prints for each seed how far the adapted student is
ahead of the baseline and of both controls, with its 95 % interval over photographs, on how many photographs it is
ahead, and the mean over seeds with its interval over photographs and seeds. Crops of one photograph go together.
Fine-tunes run the product's own loop in this process, with Ray Train's local mode. Those that an earlier call finished
are kept, and several processes may share the work: each takes a fine-tune that no other has taken.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from gmd_ray.ablation.intervals import two_way_interval
from gmd_ray.config import Config
from gmd_ray.config.load import load_config
from gmd_ray.evaluation import Evaluation
from gmd_ray.evaluation.actor import EvaluationActor
from gmd_ray.evaluation.evaluate import collect
from gmd_ray.evaluation.items import held_out_items
from gmd_ray.training.in_process import fit_in_process
from gmd_ray.training.spec import make_spec

REFERENCES = ("baseline", "source_only", "median")


def finetune_all(cfg: Config, seeds: int) -> dict[str, str]:
    """Make every fine-tune that is missing and that no other process has taken. Returns student files by name."""
    students = {"baseline": str(cfg.student.path)}
    for seed in range(seeds):
        for name in ("adapted", "source_only", "median"):
            spec = make_spec(cfg, name, None if seed == cfg.seed else seed)  # None: the run's own fine-tune
            students[f"{name}-{seed}"] = spec.student
            taken = Path(f"{spec.directory}.taken")
            taken.parent.mkdir(parents=True, exist_ok=True)
            if Path(spec.student).exists():
                continue
            try:
                taken.touch(exist_ok=False)
            except FileExistsError:
                continue
            logging.getLogger("gmd_ray").info("fine-tune %s, seed %d", name, seed)
            fit_in_process(spec)
    return students


@dataclass(frozen=True)
class Lead:
    """Lead of one student over another, for one or several training seeds."""

    mean: float
    interval: str
    """The 95 % interval over photographs, and over seeds where there are several (`ablation.intervals`)."""
    ahead: int
    photographs: int

    def __str__(self) -> str:
        return f"{self.mean:+.4f} {self.interval} ({self.ahead} of {self.photographs})"


def lead(evaluation: Evaluation, dataset: str, metric: str, pairs: Sequence[tuple[str, str]]) -> Lead:
    """Compare pairs of students, one for each seed. `NAME_07` is a crop of the photograph NAME."""
    found = [[evaluation.values(name, dataset, metric) for name in pair] for pair in pairs]
    images = sorted(set.intersection(*(set(values) for pair in found for values in pair)))
    gaps = np.array([[ours[image] - theirs[image] for image in images] for ours, theirs in found])
    groups = [image.rpartition("_")[0] or image for image in images]
    by_photograph: dict[str, list[float]] = defaultdict(list)
    for group, gap in zip(groups, gaps.mean(0), strict=True):
        by_photograph[group].append(gap)
    ends = two_way_interval(gaps, groups)
    interval = "(too few photographs)" if ends is None else f"[{ends[0]:+.4f}, {ends[1]:+.4f}]"
    ahead = sum(statistics.fmean(crops) > 0 for crops in by_photograph.values())
    return Lead(float(gaps.mean()), interval, ahead, len(by_photograph))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="demo", choices=["demo", "toy"])
    parser.add_argument("--out", help="a finished run of the preset, runs/PRESET by default")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("gmd_ray").setLevel(logging.INFO)
    out = args.out or f"runs/{args.preset}"
    cfg = load_config([f"preset={args.preset}", f"out={out}", "evaluation.report_images=0"])
    students = finetune_all(cfg, args.seeds)
    missing = [name for name, file in students.items() if not Path(file).exists()]
    if missing:
        print(f"other processes still make {', '.join(missing)} (of one that was killed, remove the .taken file)")
        return
    items = held_out_items(cfg)
    evaluation = collect(cfg, students, items, [EvaluationActor(cfg, students)(pa.Table.from_pylist(items))])

    print("| student | target PSNR | target SSIM | source PSNR | source SSIM |\n| --- | --- | --- | --- | --- |")
    for name in evaluation.students:
        pairs = [(dataset, metric) for dataset in ("target", "source") for metric in ("psnr", "ssim")]
        print(f"| {name} | {' | '.join(f'{evaluation.mean(name, *pair):.4f}' for pair in pairs)} |")
    seeds = range(args.seeds)
    print(f"| adapted minus | data set | metric | {' | '.join(f'seed {s}' for s in seeds)} | over seeds |")
    print("| --- " * (4 + args.seeds) + "|")
    for dataset in ("target", "source"):
        for metric in ("psnr", "ssim"):
            for reference in REFERENCES:
                pairs = [(f"adapted-{seed}", _of_seed(reference, seed)) for seed in seeds]
                cells = [str(lead(evaluation, dataset, metric, [pair])) for pair in pairs]
                over = lead(evaluation, dataset, metric, pairs)
                row = " | ".join([reference, dataset, metric, *cells, f"{over.mean:+.4f} {over.interval}"])
                print(f"| {row} |")


def _of_seed(reference: str, seed: int) -> str:
    """The name of a reference among the students of one seed; there is one baseline."""
    return reference if reference == "baseline" else f"{reference}-{seed}"


if __name__ == "__main__":
    main()

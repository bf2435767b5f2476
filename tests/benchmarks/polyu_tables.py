"""The statistics and tables of `tests.benchmarks.polyu`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.special import stdtrit

from gmd_ray.ablation.intervals import two_way_interval
from gmd_ray.config import Config
from gmd_ray.images.degradation.degradations import make_degradation, sample_rng
from gmd_ray.images.files.encode import decode_png, to_tensor
from gmd_ray.images.sets.pairs import load_image
from gmd_ray.pairstore.schema import rows_dataset
from gmd_ray.pairstore.store import store_url
from gmd_ray.quality import load_metric
from gmd_ray.training.data.datasets import median

Key = tuple[str, float, int]
"""Name, ratio and seed of a fine-tune."""

SEEDS, RATIOS = (0, 1, 2), (0.9, 0.5)
NAMES = ("adapted", "source_only", "median", "supervised")


def scene(key: str) -> str:
    """The scene of a crop's id."""
    return key.rpartition("_")[0]


def values(rows: pa.Table, dataset: str, metric: str, student: str = "student") -> dict[str, float]:
    """Values by image id."""
    return {
        row["id"]: row["value"]
        for row in rows.select(["dataset", "metric", "student", "id", "value"]).to_pylist()
        if (row["dataset"], row["metric"], row["student"]) == (dataset, metric, student)
    }


def with_interval(numbers: Sequence[float], form: str = "+.2f") -> str:
    """The mean of independent numbers and its 95 % t interval; the mean alone for a single number."""
    array = np.array(numbers, np.float64)
    n, mean = len(array), float(array.mean())
    if n < 2:
        return f"{mean:{form}}"
    half = float(stdtrit(n - 1, 0.975)) * float(array.std(ddof=1)) / n**0.5
    return f"{mean:{form}} [{mean - half:{form}}, {mean + half:{form}}]"


def gaps_of(ours: dict[str, float], theirs: dict[str, float], by_scene: bool) -> list[float]:
    """Differences by image, or their means by scene: crops of one scene are no independent images."""
    gaps: dict[str, list[float]] = {}
    for key in theirs:
        gaps.setdefault(scene(key) if by_scene else key, []).append(ours[key] - theirs[key])
    return [float(np.mean(group)) for group in gaps.values()]


def with_interval_over_both(seeds: Sequence[Mapping[str, float]], form: str = "+.2f") -> str:
    """The mean difference and its 95 % interval over scenes and training seeds at once.

    Args:
        seeds: the differences of one training seed by image, all of the same images.
        form: format of the numbers.
    """
    ids = sorted(seeds[0])
    gaps = np.array([[one[key] for key in ids] for one in seeds])
    found = two_way_interval(gaps, [scene(key) for key in ids])
    mean = f"{gaps.mean():{form}}"
    return mean if found is None else f"{mean} [{found[0]:{form}}, {found[1]:{form}}]"


BINS = ((0, 5), (5, 15), (15, 35), (35, 55))
"""Ranges of the noise's sigma, in 8-bit levels."""


def sigma(cfg: Config, key: str) -> float:
    """The sigma of a source test image, drawn as the evaluation draws it; it does not depend on the image."""
    side = 192 if key.startswith("kodim") else 96
    degradation = make_degradation(str(cfg.source.degradation), cfg.source.degradation_args)
    steps: list[dict[str, object]] = []
    degradation(np.zeros((side, side, 3), np.float32), sample_rng("source-test", cfg.seed, key), steps)
    return float(str(steps[-1]["level"]))


def gaps_by_sigma(cfg: Config, ours: dict[str, float], theirs: dict[str, float]) -> str:
    """Mean differences on the source, by range of sigma, with the number of images."""
    cells = []
    levels = {key: sigma(cfg, key) for key in theirs}
    for low, high in BINS:
        gaps = [ours[key] - theirs[key] for key in theirs if low <= levels[key] < high]
        cells.append(f"{low}-{high}: {np.mean(gaps):+.2f} ({len(gaps)})" if gaps else f"{low}-{high}: none")
    return "sigma " + ", ".join(cells)


def print_tables(cfg: Config, base: pa.Table, rows: Mapping[Key, pa.Table]) -> None:
    """Print the tables of whatever has been measured.

    Args:
        cfg: the settings.
        base: rows of the unadapted student.
        rows: rows of each fine-tune.
    """
    metrics = cfg.evaluation.metrics
    print("| student | ratio | seeds |" + "".join(f" target {metric} |" for metric in metrics) + " source psnr |")
    print("| --- " * (len(metrics) + 4) + "|")
    columns = [*(("target", metric) for metric in metrics), ("source", "psnr")]
    for student, label in (("lq", "untouched photo"), ("student", "unadapted")):
        means = [float(np.mean(list(values(base, *column, student).values()))) for column in columns]
        print(f"| {label} | | |" + "".join(f" {mean:.4g} |" for mean in means))
    for name in NAMES:
        for ratio in RATIOS:
            seeds = [seed for seed in SEEDS if (name, ratio, seed) in rows]
            if not seeds:
                continue
            cells = []
            for column in columns:
                per_seed = [values(rows[name, ratio, seed], *column) for seed in seeds]
                if not all(per_seed):
                    cells.append("–")
                    continue
                mean = {key: float(np.mean([one[key] for one in per_seed])) for key in per_seed[0]}
                change = with_interval(gaps_of(mean, values(base, *column), column[0] == "target"), "+.4f")
                cells.append(f"{np.mean(list(mean.values())):.4g} ({change})")
            print(f"| {name} | {ratio} | {len(seeds)} |" + "".join(f" {cell} |" for cell in cells))
    _print_leads(rows, base)
    for key, table in rows.items():
        text = gaps_by_sigma(cfg, values(table, "source", "psnr"), values(base, "source", "psnr"))
        print(f"source by sigma, {key}: {text}")
    _print_truth(cfg)


def _print_leads(rows: Mapping[Key, pa.Table], base: pa.Table) -> None:
    """Print how far the adapted student is ahead of each other one, by seed, and over scenes and seeds at once."""
    for metric in ("psnr", "ssim"):
        for ratio in RATIOS:
            for other in ("unadapted", "source_only", "median", "supervised"):
                cells, by_seed = [], []
                for seed in SEEDS:
                    against = (other, RATIOS[0] if other == "source_only" else ratio, seed)
                    reference = base if other == "unadapted" else rows.get(against)
                    ours = rows.get(("adapted", ratio, seed))
                    if ours is None or reference is None:
                        continue
                    left, right = values(ours, "target", metric), values(reference, "target", metric)
                    gaps = gaps_of(left, right, by_scene=True)
                    cells.append(f"{with_interval(gaps, '+.4f')}, {sum(gap > 0 for gap in gaps)} of {len(gaps)} scenes")
                    by_seed.append({key: left[key] - right[key] for key in right})
                if by_seed:
                    overall = with_interval_over_both(by_seed, "+.4f")
                    print(f"| {ratio} | {other} | {metric} | {' | '.join(cells)} | {overall} |")


def _print_truth(cfg: Config) -> None:
    """Print the no-reference scores of the ground truth itself, and the pseudo-targets against it."""
    root = Path(str(cfg.data.root), "frozen/polyu")
    for metric in cfg.evaluation.metrics:
        measure_one = load_metric(metric, weights=cfg.evaluation.weights.get(metric))
        if not measure_one.needs_reference:
            scores = [
                float(measure_one(to_tensor([load_image(str(path), False)])[0], None))
                for path in sorted((root / "target_test_hq").iterdir())
            ]
            print(f"ground truth, {metric}: {np.mean(scores):.4g}")
    psnr = load_metric("psnr")
    found: dict[str, list[float]] = {}
    for row in rows_dataset(store_url(cfg.out)).to_table(columns=["id", "lq", "restored", "pseudo_target"]).to_pylist():
        truth = to_tensor([load_image(str(root / "target_hq" / row["id"]), False)])[0]
        images = {key: decode_png(row[key]) for key in ("lq", "restored", "pseudo_target")}
        images["median of restored"] = median(images["restored"])
        for key, image in images.items():
            found.setdefault(key, []).append(float(psnr(to_tensor([image])[0], truth)))
    for key, line in found.items():
        print(f"against the truth, {key}: {with_interval(line, '.2f')} dB on {len(line)} crops")
    better = np.mean([a > b for a, b in zip(found["pseudo_target"], found["median of restored"], strict=True)])
    print(json.dumps({"share of pseudo-targets nearer to the truth than the median": round(float(better), 3)}))

"""Real camera noise: fine-tunes of the preset `denoise_polyu` over ratios and seeds, measured on held-out scenes.

    gmd-ray generate preset=denoise_polyu data.root=ROOT student.path=CDNCNN out=OUT ray.enabled=false
    python -m tests.benchmarks.polyu dev OUT ROOT CDNCNN training.lr=5e-5    # one row, on held-out training scenes
    python -m tests.benchmarks.polyu run OUT ROOT CDNCNN [--minutes 9]       # fine-tunes and figures that are missing
    python -m tests.benchmarks.polyu tables OUT ROOT CDNCNN                  # the tables of docs/results.md

The pairs are made once and shared. Fine-tunes run the product's own loop in this process, with Ray Train's local mode,
and figures come from the product's own evaluation; no Ray session is started. Several processes may share the work of
`run`: each takes a fine-tune or a measurement that no other has taken, and `--minutes` ends it between two of them. Of
a process that was killed, remove the `*.taken` files that have no result beside them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gmd_ray.config import Config
from gmd_ray.config.load import load_config
from gmd_ray.training.spec import TrainingSpec, make_spec

SEEDS, RATIOS = (0, 1, 2), (0.9, 0.5)
NAMES = ("adapted", "source_only", "median", "supervised")
DEV_SCENES = slice(2, None, 5)
"""Every fifth training scene, from the third: the development split of the target."""
DEV_SOURCE = slice(3, None, 8)
"""Every eighth source crop, from the fourth: the development split of the source."""


def settings(args: argparse.Namespace, *more: str) -> Config:
    given = [f"out={args.out}", f"data.root={args.root}", f"student.path={args.student}"]
    one_thread = ["training.cpus_per_worker=1", "evaluation.pool.num_cpus=1", "evaluation.report_images=0"]
    return load_config(["preset=denoise_polyu", *given, *one_thread, *args.settings, *more])


def scene(key: str) -> str:
    """The scene of a crop's id."""
    return key.rpartition("_")[0]


def fit(spec: TrainingSpec) -> None:
    """Train in this process, with the loop that Ray Train's workers run."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from gmd_ray.ray_utils.remote_errors import raise_if_error
    from gmd_ray.training.worker.loop import train

    trainer = TorchTrainer(
        train,
        train_loop_config={"spec": spec},
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(name="train", storage_path=spec.directory),
    )
    raise_if_error(trainer.fit().return_value)


def measure(cfg: Config, student: str, items: Sequence[dict[str, object]]) -> pa.Table:
    """Measure one student, called `student`, and the unprocessed input in this process."""
    from gmd_ray.evaluation.actor import EvaluationActor

    actor = EvaluationActor(cfg, {"student": student})
    return actor(pa.Table.from_pylist(list(items)))


def values(rows: pa.Table, dataset: str, metric: str, student: str = "student") -> dict[str, float]:
    """Values by image id."""
    return {
        row["id"]: row["value"]
        for row in rows.select(["dataset", "metric", "student", "id", "value"]).to_pylist()
        if (row["dataset"], row["metric"], row["student"]) == (dataset, metric, student)
    }


def mean_and_error(numbers: Sequence[float]) -> tuple[float, float]:
    array = np.array(numbers)
    return float(array.mean()), float(array.std(ddof=1) / len(array) ** 0.5) if len(array) > 1 else float("nan")


def gap(ours: dict[str, float], theirs: dict[str, float]) -> tuple[float, float, float]:
    """Mean difference, its standard error over images, and over scenes."""
    gaps = {key: ours[key] - theirs[key] for key in theirs}
    scenes = [np.mean([gaps[key] for key in gaps if scene(key) == name]) for name in {scene(key) for key in gaps}]
    return (*mean_and_error(list(gaps.values())), mean_and_error(scenes)[1])


def dev(args: argparse.Namespace) -> None:
    """Train without the development split, measure on it, and print one row."""
    from gmd_ray.images.sets.polyu import TRAIN

    started, held_out = time.process_time(), set(TRAIN[DEV_SCENES])
    cfg = settings(args, "evaluation.metrics=[psnr]")
    spec = make_spec(cfg, args.name, cfg.seed)
    folder = Path(args.out, "dev", f"{os.getpid()}")
    folder.mkdir(parents=True)
    dev_source = spec.source[DEV_SOURCE]
    spec = replace(
        spec,
        source=tuple(pair for pair in spec.source if pair not in dev_source),
        directory=str(folder),
        student=str(folder / Path(spec.student).name),
    )
    if target := spec.target:
        kept = [i for i, key in enumerate(target.ids) if scene(key) not in held_out]
        removed = tuple(key for key in target.ids if scene(key) in held_out)
        truths = tuple(target.truths[i] for i in kept) if target.truths else ()
        ids = tuple(target.ids[i] for i in kept)
        target = replace(target, ids=ids, truths=truths, removed_inputs=(*target.removed_inputs, *removed))
        spec = replace(spec, target=target)
    fit(spec)
    trained = time.process_time() - started
    lq, hq = (
        Path(str(path).partition("@")[2], "frozen/polyu", side)
        for path, side in ((cfg.target.path, "target_lq"), (cfg.training.supervised_hq, "target_hq"))
    )
    crops = sorted(path.name for path in lq.iterdir() if scene(path.name) in held_out)
    items = [{"dataset": "target", "id": name, "lq": str(lq / name), "hq": str(hq / name)} for name in crops]
    items += [{"dataset": "source", "id": pair.id, "lq": "", "hq": pair.hq} for pair in dev_source]
    items = [{**item, "data": b"", "picture": False} for item in items]
    before = Path(args.out, "dev", f"baseline-{cfg.seed}.parquet")
    if not before.exists():
        pq.write_table(measure(cfg, str(cfg.student.path), items), before)
    base, rows = pq.read_table(before), measure(cfg, spec.student, items)
    parts = []
    for dataset in ("target", "source"):
        mean, error, over_scenes = gap(values(rows, dataset, "psnr"), values(base, dataset, "psnr"))
        parts.append(
            f"{dataset} {mean:+.2f} ± {error:.2f}" + (f" (scenes {over_scenes:.2f})" if dataset == "target" else "")
        )
    by_sigma = gaps_by_sigma(cfg, values(rows, "source", "psnr"), values(base, "source", "psnr"))
    t = cfg.training
    what = (
        f"{args.name} r{t.source_ratio} {t.loss} lr{t.lr:g} {t.steps}x{t.batch_size} {t.schedule} ema{t.ema} {t.mixing}"
    )
    line = f"{what}: {', '.join(parts)}, {by_sigma}, {trained:.0f} CPU s"
    print(line, flush=True)
    with Path(args.out, "dev", "rows.txt").open("a") as stream:
        stream.write(line + "\n")


BINS = ((0, 5), (5, 15), (15, 35), (35, 55))
"""Ranges of the noise's sigma, in 8-bit levels."""


def sigma(cfg: Config, key: str) -> float:
    """The sigma of a source test image, drawn as the evaluation draws it; it does not depend on the image."""
    from gmd_ray.images.degradation.degradations import make_degradation, sample_rng

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


def tasks() -> Iterator[tuple[str, float, int]]:
    """(name, ratio, seed) of every fine-tune, the most informative first."""
    for seed in SEEDS:
        for ratio in RATIOS:
            yield from ((name, ratio, seed) for name in NAMES if name != "source_only" or ratio == RATIOS[0])


def folder_of(args: argparse.Namespace, name: str, ratio: float, seed: int) -> Path:
    return Path(args.out, "seeds", f"{name}-r{ratio}-seed{seed}")


def run(args: argparse.Namespace) -> None:
    """Fine-tune and measure whatever is missing and not taken by another process."""
    end = time.monotonic() + args.minutes * 60
    work = [(None, 0.0, 0), *((name, ratio, seed) for name, ratio, seed in tasks())]
    for name, ratio, seed in work:
        folder = Path(args.out, "seeds", "baseline") if name is None else folder_of(args, name, ratio, seed)
        if time.monotonic() > end or (folder / "rows.parquet").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(folder / "rows.taken", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        cfg = settings(args, f"training.source_ratio={ratio}" if name else "seed=0")
        student = str(cfg.student.path)
        if name is not None:
            spec = make_spec(cfg, name, seed)
            student = str(folder / Path(spec.student).name)
            fit(replace(spec, directory=str(folder), student=student))
        pq.write_table(_measure_all(cfg, student), folder / "draft.parquet")
        os.replace(folder / "draft.parquet", folder / "rows.parquet")
        print(folder.name, flush=True)


def _measure_all(cfg: Config, student: str) -> pa.Table:
    """All metrics on the target, and those that need ground truth on the source."""
    from gmd_ray.evaluation.items import held_out_items

    items = held_out_items(cfg)
    tables = []
    for dataset, metrics in (("target", cfg.evaluation.metrics), ("source", ["psnr", "ssim"])):
        measured = replace(cfg, evaluation=replace(cfg.evaluation, metrics=list(metrics)))
        tables.append(measure(measured, student, [item for item in items if item["dataset"] == dataset]))
    return pa.concat_tables(tables)


def tables(args: argparse.Namespace) -> None:
    """Print the tables of whatever has been measured."""
    cfg = settings(args)
    done = {key: folder_of(args, *key) / "rows.parquet" for key in tasks()}
    rows = {key: pq.read_table(path) for key, path in done.items() if path.exists()}
    base = pq.read_table(Path(args.out, "seeds", "baseline", "rows.parquet"))
    metrics = cfg.evaluation.metrics
    print("| student | ratio | seeds |" + "".join(f" target {metric} |" for metric in metrics) + " source psnr |")
    print("| --- " * (len(metrics) + 4) + "|")
    columns = [*(("target", metric) for metric in metrics), ("source", "psnr")]
    for student, label in (("lq", "untouched photo"), ("student", "unadapted")):
        cells = [mean_and_error(list(values(base, *column, student).values()))[0] for column in columns]
        print(f"| {label} | | |" + "".join(f" {cell:.4g} |" for cell in cells))
    for name in NAMES:
        for ratio in RATIOS:
            seeds = [seed for seed in SEEDS if (name, ratio, seed) in rows]
            if not seeds:
                continue
            cells = []
            for column in columns:
                per_seed = [values(rows[name, ratio, seed], *column) for seed in seeds]
                mean = {key: float(np.mean([one[key] for one in per_seed])) for key in per_seed[0]}
                change, error, _ = gap(mean, values(base, *column))
                cells.append(f"{np.mean(list(mean.values())):.4g} ({change:+.3f} ± {error:.3f})")
            print(f"| {name} | {ratio} | {len(seeds)} |" + "".join(f" {cell} |" for cell in cells))
    _print_leads(rows, base)
    for key, table in rows.items():
        text = gaps_by_sigma(cfg, values(table, "source", "psnr"), values(base, "source", "psnr"))
        print(f"source by sigma, {key}: {text}")
    _print_truth(cfg)


def _print_leads(rows: dict[tuple[str, float, int], pa.Table], base: pa.Table) -> None:
    """Print how far the adapted student is ahead of each other one, by seed and over the seeds."""
    for metric in ("psnr", "ssim"):
        for ratio in RATIOS:
            for other in ("unadapted", "source_only", "median", "supervised"):
                cells, means = [], []
                for seed in SEEDS:
                    against = (other, RATIOS[0] if other == "source_only" else ratio, seed)
                    reference = base if other == "unadapted" else rows.get(against)
                    ours = rows.get(("adapted", ratio, seed))
                    if ours is None or reference is None:
                        continue
                    mean, error, scenes = gap(values(ours, "target", metric), values(reference, "target", metric))
                    cells.append(f"{mean:+.4f} ± {error:.4f} ± {scenes:.4f}")
                    means.append(mean)
                mean, error = mean_and_error(means) if means else (float("nan"), float("nan"))
                print(f"| {ratio} | {other} | {metric} | {' | '.join(cells)} | {mean:+.4f} ± {error:.4f} |")


def _print_truth(cfg: Config) -> None:
    """Print the no-reference scores of the ground truth itself, and the pseudo-targets against it."""
    from gmd_ray.images.files.encode import decode_png, to_tensor
    from gmd_ray.images.sets.pairs import load_image
    from gmd_ray.pairstore.schema import rows_dataset
    from gmd_ray.pairstore.store import store_url
    from gmd_ray.quality import load_metric
    from gmd_ray.training.data.datasets import median

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
        mean, error = mean_and_error(line)
        print(f"against the truth, {key}: {mean:.2f} ± {error:.2f} dB on {len(line)} crops")
    better = np.mean([a > b for a, b in zip(found["pseudo_target"], found["median of restored"], strict=True)])
    print(json.dumps({"share of pseudo-targets nearer to the truth than the median": round(float(better), 3)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["dev", "run", "tables"])
    parser.add_argument("out", metavar="OUT", help="a run directory that holds the pairs")
    parser.add_argument("root", metavar="ROOT", help="data.root of the preset")
    parser.add_argument("student", metavar="CDNCNN", help="student.path of the preset")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="further settings")
    parser.add_argument("--name", default="adapted", choices=NAMES, help="the fine-tune of `dev`")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no further work of `run` after this time")
    args = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.WARNING)
    {"dev": dev, "run": run, "tables": tables}[args.what](args)


if __name__ == "__main__":
    main()

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
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gmd_ray.config import Config
from gmd_ray.config.load import load_config
from gmd_ray.training.in_process import fit_in_process
from gmd_ray.training.spec import make_spec
from tests.benchmarks.polyu_tables import (
    NAMES,
    RATIOS,
    SEEDS,
    Key,
    gaps_by_sigma,
    gaps_of,
    print_tables,
    scene,
    values,
    with_interval,
)

DEV_SCENES = slice(2, None, 5)
"""Every fifth training scene, from the third: the development split of the target."""
DEV_SOURCE = slice(3, None, 8)
"""Every eighth source crop, from the fourth: the development split of the source."""


def settings(args: argparse.Namespace, *more: str) -> Config:
    given = [f"out={args.out}", f"data.root={args.root}", f"student.path={args.student}"]
    one_thread = ["training.cpus_per_worker=1", "evaluation.pool.num_cpus=1", "evaluation.report_images=0"]
    return load_config(["preset=denoise_polyu", *given, *one_thread, *args.settings, *more])


def measure(cfg: Config, student: str, items: Sequence[dict[str, object]]) -> pa.Table:
    """Measure one student, called `student`, and the unprocessed input in this process."""
    from gmd_ray.evaluation.actor import EvaluationActor

    actor = EvaluationActor(cfg, {"student": student})
    return actor(pa.Table.from_pylist(list(items)))


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
    fit_in_process(spec)
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
        gaps = gaps_of(values(rows, dataset, "psnr"), values(base, dataset, "psnr"), dataset == "target")
        parts.append(f"{dataset} {with_interval(gaps)}")
    by_sigma = gaps_by_sigma(cfg, values(rows, "source", "psnr"), values(base, "source", "psnr"))
    t = cfg.training
    what = (
        f"{args.name} r{t.source_ratio} {t.loss} lr{t.lr:g} {t.steps}x{t.batch_size} {t.schedule} ema{t.ema} {t.mixing}"
    )
    line = f"{what}: {', '.join(parts)}, {by_sigma}, {trained:.0f} CPU s"
    print(line, flush=True)
    with Path(args.out, "dev", "rows.txt").open("a") as stream:
        stream.write(line + "\n")


def tasks() -> Iterator[Key]:
    """(name, ratio, seed) of every fine-tune, the most informative first."""
    for seed in SEEDS:
        for ratio in RATIOS:
            yield from ((name, ratio, seed) for name in NAMES if name != "source_only" or ratio == RATIOS[0])


def folder_of(args: argparse.Namespace, name: str, ratio: float, seed: int) -> Path:
    return Path(args.out, "seeds", f"{name}-r{ratio}-seed{seed}")


def run(args: argparse.Namespace) -> None:
    """Fine-tune and measure whatever is missing and not taken by another process."""
    end = time.monotonic() + args.minutes * 60
    cfg = settings(args)
    _measure_once(Path(args.out, "seeds", "baseline"), cfg, str(cfg.student.path))
    for name, ratio, seed in tasks():
        if time.monotonic() > end:
            return
        folder = folder_of(args, name, ratio, seed)
        cfg = settings(args, f"training.source_ratio={ratio}")
        student = folder / Path(str(cfg.student.path)).name
        if not student.exists() and _take(folder / "student.taken"):
            fit_in_process(replace(make_spec(cfg, name, seed), directory=str(folder), student=str(student)))
            print(f"{folder.name}: trained", flush=True)
        if student.exists() and time.monotonic() < end:
            _measure_once(folder, cfg, str(student))


def _take(marker: Path) -> bool:
    """Tell whether this process is the first to ask for a piece of work."""
    marker.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _measure_once(folder: Path, cfg: Config, student: str) -> None:
    if (folder / "rows.parquet").exists() or not _take(folder / "rows.taken"):
        return
    pq.write_table(_measure_all(cfg, student), folder / "draft.parquet")
    os.replace(folder / "draft.parquet", folder / "rows.parquet")
    print(f"{folder.name}: measured", flush=True)


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
    done = {key: folder_of(args, *key) / "rows.parquet" for key in tasks()}
    base = pq.read_table(Path(args.out, "seeds", "baseline", "rows.parquet"))
    print_tables(settings(args), base, {key: pq.read_table(path) for key, path in done.items() if path.exists()})


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

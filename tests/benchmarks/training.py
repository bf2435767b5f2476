"""Does the data keep up with Stage 2, and what do more workers give?

`loader`: steps with the real loaders (`Prefetcher` over the paired folders and a pair store) against the same steps on
the same batches held in memory, in alternating rounds, since a shared machine's speed wanders. Without Ray. The ratio
of CPU seconds, all threads together, is the one to trust where others use the machine.
`scaling`: whole fine-tunes with one and with two DDP workers on a private Ray session, a thread each; images/s from the
curve, without its first point.

    python -m tests.benchmarks.training loader --case toy
    python -m tests.benchmarks.training loader --case crop256   # SwinIR-light x2, HQ crops of 256, degraded on the fly
    python -m tests.benchmarks.training scaling
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from gmd_ray.config import Config, SourceConfig, StudentConfig, TrainingConfig
from gmd_ray.images.files.encode import encode_png
from gmd_ray.images.sets.pairs import list_pairs
from gmd_ray.pairstore.schema import PAIR_SCHEMA
from gmd_ray.students import load_student, new_checkpoint
from gmd_ray.training.data.batches import Batch, Batches, Prefetcher
from gmd_ray.training.data.datasets import SourcePairs, TargetPairs
from gmd_ray.training.data.mixing import Mixture
from gmd_ray.training.data.targets import AcceptedPairs
from gmd_ray.training.worker.optim import make_optimizer

SWINIR_LIGHT = {
    "upscale": 2, "img_size": 64, "window_size": 8, "embed_dim": 60, "depths": [6, 6, 6, 6], "num_heads": [6, 6, 6, 6],
    "mlp_ratio": 2, "upsampler": "pixelshuffledirect", "img_range": 1.0, "resi_connection": "1conv",
}  # fmt: skip
DNCNN = {"in_nc": 3, "out_nc": 3, "nc": 32, "nb": 8, "act_mode": "R"}
CASES = {
    # The toy world's student, crop and batch; paired files of its size.
    "toy": {"arch": ("DnCNN", DNCNN), "scale": 1, "patch": 32, "batch": 32, "side": 64, "made": None},
    # HQ crops of 256 pixels out of 1,280 x 720 frames, the LQ side made by the second-order degradation.
    "crop256": {"arch": ("SwinIR", SWINIR_LIGHT), "scale": 2, "patch": 128, "batch": 2, "side": 720,
                "made": "realesrgan"},
}  # fmt: skip


def picture(key: int, height: int, width: int) -> np.ndarray:
    """Fine random detail over large shapes: to PNG and to a resampler like a photograph."""
    rng = np.random.default_rng(key)
    image = cv2.resize(rng.random((9, 16, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + rng.normal(0, 0.03, image.shape), 0, 1).astype(np.float32)


def write_world(folder: Path, case: dict, n: int) -> tuple[SourceConfig, AcceptedPairs]:
    """n source pairs and n accepted pairs on disk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    side, scale = case["side"], case["scale"]
    width = side * 16 // 9
    rows = []
    (folder / "pairs" / "rows").mkdir(parents=True)
    for i in range(n):
        hq = picture(i, side // scale * scale, width // scale * scale)
        lq = cv2.resize(hq, (hq.shape[1] // scale, hq.shape[0] // scale), interpolation=cv2.INTER_AREA)
        for name, image in (("hq", hq), ("lq", lq)):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{i:03d}.png").write_bytes(encode_png(image))
        rows.append({"id": f"{i:03d}.png", "status": "ok", "lq": encode_png(lq), "pseudo_target": encode_png(hq)})
        rows[-1]["score"] = 5.0
    pq.write_table(pa.Table.from_pylist(rows, schema=PAIR_SCHEMA), folder / "pairs" / "rows" / "part-0.parquet")
    (folder / "pairs" / "manifest.json").write_text('{"higher_is_better": true}')
    made = {"degradation": case["made"], "degradation_args": {"scale": scale}} if case["made"] else {}
    source = SourceConfig(hq=str(folder / "hq"), lq=None if made else str(folder / "lq"), **made)
    ids = tuple(row["id"] for row in rows)
    return source, AcceptedPairs(str(folder / "pairs"), 4.2, True, False, (), ids, "")


def loader(case: dict, images: int, steps: int, rounds: int, threads: int) -> None:
    """Print step times and the share of time that was spent waiting for data."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        source, target = write_world(folder, case, images)
        new_checkpoint(*case["arch"], 0, folder / "student.pth")
        student = load_student(StudentConfig(path=str(folder / "student.pth"), device="cpu"))
        pairs = list_pairs(str(source.hq), source.lq)
        common = {"scale": case["scale"], "patch": case["patch"], "flip": True}
        streams = {
            "source": SourcePairs(source, pairs, **common, seed=0, cache_bytes=2 * 10**9),
            "target": TargetPairs(target, **common),
        }
        mixture = Mixture(case["batch"], 0.9, len(pairs), len(target.ids), 0)
        batches = Batches(mixture, streams, 0, 0, 1)
        module = student.module.train()
        optimizer = make_optimizer(module, TrainingConfig())

        def train(batch: Batch) -> None:
            losses, _ = student.training_loss(batch.lq, batch.hq, reduce=False)
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()

        def timed(get: Callable[[], Batch]) -> tuple[float, float]:
            """Wall and CPU seconds of a step."""
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(steps):
                train(get())
            return (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps

        for step in range(2):
            train(batches(step))
        wall, cpu = time.perf_counter(), time.process_time()
        for step in range(2, 5):
            batches(step)
        made, made_cpu = (time.perf_counter() - wall) / 3, (time.process_time() - cpu) / 3
        real, memory, waits = [], [], []
        for number in range(rounds):
            start = 20 + number * steps
            held = [batches(step) for step in range(start, start + steps)]
            # More steps are on offer than are taken, so that the loaders work to the end as they do in a run; and the
            # queue is full at the first, so that as many batches are made meanwhile as are taken.
            ahead = 2 * threads + 2
            with Prefetcher(batches, start - ahead, start + steps + ahead, threads) as prefetcher:
                for _ in range(ahead):
                    prefetcher.get()
                time.sleep(2 * ahead * made)
                waited = prefetcher.waited_s
                real.append(timed(prefetcher.get))
                waits.append((prefetcher.waited_s - waited) / (real[-1][0] * steps))
            memory.append(timed(iter(held).__next__))
    print(f"{'':24}     wall     CPU")
    for name, times in (("step with the loaders", real), ("step, data in memory", memory)):
        print(f"{name:24}{_median(times, 0) * 1e3:9.1f}{_median(times, 1) * 1e3:8.1f} ms")
    ratios = [tuple(a / b for a, b in zip(x, y, strict=True)) for x, y in zip(real, memory, strict=True)]
    print(f"{'ratio, of each round':24}{_median(ratios, 0):9.3f}{_median(ratios, 1):8.3f}")
    print(f"{'ratio, lowest':24}{min(r[0] for r in ratios):9.3f}{min(r[1] for r in ratios):8.3f}")
    print(f"{'ratio, highest':24}{max(r[0] for r in ratios):9.3f}{max(r[1] for r in ratios):8.3f}")
    print(f"{'making a batch':24}{made * 1e3:9.1f}{made_cpu * 1e3:8.1f} ms")
    print(f"{'waiting for data':24}{statistics.median(waits):9.1%}")


def _median(rows: list[tuple[float, ...]], column: int) -> float:
    return statistics.median(row[column] for row in rows)


def scaling(steps: int) -> None:
    """Print images/s of one and of two workers."""
    import ray

    from gmd_ray.training import finetune, finetuned_path
    from gmd_ray.training.run_files import read_curve

    case = CASES["toy"] | {"arch": ("DnCNN", DNCNN | {"nc": 64})}
    rates = {}
    with tempfile.TemporaryDirectory(prefix="gmd-", dir="/tmp") as temp:
        folder = Path(temp)
        source, _ = write_world(folder / "world", case, 64)
        new_checkpoint(*case["arch"], 0, folder / "student.pth")
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=f"{temp}/ray")
        try:
            for workers in (1, 2):
                training = TrainingConfig(
                    steps=steps, batch_size=32, source_ratio=1.0, patch=32, num_workers=workers,
                    log_every=steps // 5, checkpoint_every=steps,
                )  # fmt: skip
                student = StudentConfig(path=str(folder / "student.pth"))
                cfg = Config(out=str(folder / str(workers)), source=source, student=student, training=training)
                finetune(cfg, "source_only")
                points = read_curve(Path(finetuned_path(cfg, "source_only")).parent / "curve.jsonl")[1:]
                rates[workers] = statistics.median(point["images_per_s"] for point in points)
        finally:
            ray.shutdown()
    for workers, rate in rates.items():
        print(f"{workers} worker(s)  {rate:8.1f} images/s")
    print(f"two over one {rates[2] / rates[1]:8.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["loader", "scaling"])
    parser.add_argument("--case", choices=sorted(CASES), default="toy")
    parser.add_argument("--images", type=int, default=24, help="pairs of each stream on disk")
    parser.add_argument("--steps", type=int, default=10, help="of a round; of the whole run for scaling")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch, and of the loaders: training.cpus_per_worker")
    args = parser.parse_args()
    if args.what == "loader":
        loader(CASES[args.case], args.images, args.steps, args.rounds, args.threads)
    else:
        scaling(args.steps)

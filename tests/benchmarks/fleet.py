"""Does the stream keep its teachers busy, and does its memory stay put?

python -m tests.benchmarks.fleet [sleep|loop|memory|bytes|travel]

sleep   the real stream with teachers that sleep for --latency seconds an image and hold one (pretended) GPU each
loop    the stream with the toy world's teacher, against the same model in a bare loop in this process
memory  peak memory of the driver and its workers, for 1,000 and for 10,000 small images
bytes   how much of a small object store images take that do not compress, with a teacher that holds them up
travel  an image from one actor to the next: as PNG bytes, or as pixels
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch

from gmd_ray.config import PoolConfig
from gmd_ray.config.load import load_config
from gmd_ray.generation import Models, generate
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.encode import decode_png, encode_png, to_tensor
from gmd_ray.teachers import load_teacher
from tests.benchmarks.timed import Calls, TimedTeacherSpec
from tests.generation.world import World, write_photo

TEACHER_CPUS = 0.1
"""Settings of a teacher that sleeps."""


def world(root: Path, images: int, size: tuple[int, int]) -> World:
    world = World(root, on_ray=True).build(0)
    for number in range(images):
        write_photo(world.photos / f"{number:05d}.png", size)
    small = PoolConfig(num_cpus=0.5, batch_size=16)
    world.cfg.student.pool = world.cfg.scorer.pool = small
    world.cfg.generation.keep_restored = False
    return world


def start_ray(gpus: int, store: int = 500_000_000) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=4 + math.ceil(gpus * TEACHER_CPUS),  # more would start a crowd of read tasks
        num_gpus=gpus,
        object_store_memory=store,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=tempfile.mkdtemp(prefix="gmd-", dir="/tmp"),
    )


def store_stats() -> Any:
    """Counters of the object store since Ray was started."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    return get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address)).store_stats


def spilled() -> int:
    return int(store_stats().spilled_bytes_total)


def peak_mb(pid: int) -> float:
    """Largest resident memory of a process so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


class WorkerPeak(threading.Thread):
    """Looks once a second at the workers below this driver, since pools are gone when a run returns; largest, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mb = 0.0
        self.start()

    def run(self) -> None:
        while True:
            for process in psutil.Process().children(recursive=True):
                if "ray::" in _title(process):
                    with contextlib.suppress(OSError):
                        self.mb = max(self.mb, peak_mb(process.pid))
            time.sleep(1)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def sleep_run(replicas: int, latency: float, per_replica: int, initial: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        w = world(Path(folder), replicas * per_replica, (64, 64))
        w.cfg.teacher.pool = PoolConfig(
            max=replicas, initial=initial or replicas, num_cpus=TEACHER_CPUS, num_gpus=1, batch_size=1
        )
        w.cfg.generation.rows_per_block = 4
        start_ray(gpus=replicas)
        peak, start = WorkerPeak(), time.time()
        books = generate(w.cfg, models=Models(teacher=TimedTeacherSpec(str(w.log), latency)))
        wall = time.time() - start
        assert books.ok == replicas * per_replica
        assert spilled() == 0
        calls = Calls(w.log)
        assert len(calls.by_worker) == replicas
        worked = calls.last - calls.first
        print(
            f"| {replicas} | {books.ok} | {calls.busy(calls.all_up, calls.tail_from):.3f} "
            f"| {books.ok * latency / replicas / worked:.3f} | {books.ok * latency / replicas / wall:.3f} "
            f"| {calls.first - start:.1f} | {calls.all_up - calls.first:.1f} | {calls.last - calls.tail_from:.1f} "
            f"| {spilled() / 1e6:.0f} | {peak_mb(os.getpid()):.0f} | {peak.mb:.0f} |",
            flush=True,
        )


def loop_run(images: int) -> None:
    """The toy world's teacher at its settings, one thread, one replica."""
    demo = load_config(["preset=toy"])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        w = world(Path(folder), images, (64, 64))
        w.cfg.teacher = demo.teacher
        w.cfg.teacher.pool = PoolConfig(num_cpus=1, batch_size=8)
        w.cfg.generation.rows_per_block = 32
        teacher = load_teacher(demo.teacher)
        files = sorted(w.photos.iterdir())
        batches = [files[start : start + 8] for start in range(0, images, 8)]
        tensors = [to_tensor([decode_png(file.read_bytes()) for file in batch]) for batch in batches]
        teacher.project(tensors[0], [file.name for file in batches[0]])

        def loop() -> float:
            start = time.time()
            for batch, tensor in zip(batches, tensors, strict=True):
                teacher.project(tensor, [file.name for file in batch])
            return images / (time.time() - start)

        before = loop()
        start_ray(gpus=0)
        books = generate(w.cfg, models=Models(teacher=TimedTeacherSpec(str(w.log), real=True)))
        assert books.ok == images
        calls = Calls(w.log)
        after = loop()
        stream = images / (calls.last - calls.first)
        bare = (before + after) / 2
        print("| images | bare loop, before | after | stream | stream / bare |\n| --- | --- | --- | --- | --- |")
        print(f"| {images} | {before:.2f} images/s | {after:.2f} | {stream:.2f} | {stream / bare:.3f} |")


def memory_run(images: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        w = world(Path(folder), images, (16, 16))
        w.cfg.teacher.pool = PoolConfig(num_cpus=0.5, batch_size=16)
        w.cfg.generation.rows_per_block = 32
        start_ray(gpus=0)
        peak, start = WorkerPeak(), time.time()
        books = generate(w.cfg, models=Models(teacher=TimedTeacherSpec(str(w.log))))
        assert books.ok == images
        assert spilled() == 0
        print(
            f"| {images} | {time.time() - start:.0f} | {peak_mb(os.getpid()):.0f} | {peak.mb:.0f} "
            f"| {spilled() / 1e6:.0f} |",
            flush=True,
        )


def bytes_run(images: int, store: int = 200_000_000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        w = world(Path(folder), 0, (0, 0))
        rng = np.random.default_rng(0)
        w.photos.mkdir()
        for number in range(images):
            noise = rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)
            assert cv2.imwrite(str(w.photos / f"{number:05d}.png"), noise)
        read = sum(file.stat().st_size for file in w.photos.iterdir())
        w.cfg.teacher.pool = PoolConfig(num_cpus=0.5, batch_size=2)
        w.cfg.generation.rows_per_block = 4
        start_ray(gpus=0, store=store)
        peak, done = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.3):
                peak = max(peak, store_stats().object_store_bytes_used)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            assert generate(w.cfg, models=Models(teacher=TimedTeacherSpec(str(w.log), 0.4))).ok == images
        finally:
            done.set()
            watcher.join()
        print("| images | read, MB | store, MB | peak, MB | spilled, MB |\n| --- | --- | --- | --- | --- |")
        print(f"| {images} | " + " | ".join(f"{value / 1e6:.0f}" for value in (read, store, peak, spilled())) + " |")


def travel_run(photos: str, repeats: int = 20) -> None:
    """Medians over `repeats` and over up to 8 photographs, brought to a size; through a private Ray's object store."""
    import ray

    start_ray(gpus=0)
    files = sorted(file for file in Path(photos).rglob("*") if file.suffix.lower() in (".png", ".jpg"))[:8]

    def clock(fn: Callable[[], object]) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            fn()
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e3

    def there_and_back(value: object) -> None:
        ray.get(ray.put(value))

    print("| side | as | kB | encode, ms | store and fetch, ms | decode, ms |\n| --- | --- | --- | --- | --- | --- |")
    for side in (256, 512, 1024):
        columns: dict[str, list[list[float]]] = {"PNG": [], "uint8": [], "float32": []}
        for file in files:
            image = cv2.resize(decode_image(file.read_bytes()), (side, side), interpolation=cv2.INTER_AREA)
            pixels, code = np.rint(image * 255).astype(np.uint8), encode_png(image)
            for name, value, encode, decode in (
                ("PNG", code, lambda i=image: encode_png(i), lambda c=code: decode_png(c)),
                (
                    "uint8",
                    pixels,
                    lambda i=image: np.rint(i * 255).astype(np.uint8),
                    lambda p=pixels: p / np.float32(255),
                ),
                ("float32", image, lambda: None, lambda: None),
            ):
                size = len(value) if isinstance(value, bytes) else value.nbytes
                columns[name].append(
                    [size / 1e3, clock(encode), clock(lambda v=value: there_and_back(v)), clock(decode)]
                )
        for name, rows in columns.items():
            cells = [f"{statistics.median(column):.1f}" for column in zip(*rows, strict=True)]
            print(f"| {side} | {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sleep", "loop", "memory", "bytes", "travel"))
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--latency", type=float, default=2.0, help="seconds an image")
    parser.add_argument("--per-replica", type=int, default=24, help="images for each replica")
    parser.add_argument("--images", type=int, nargs="+")
    parser.add_argument("--photos", help="folder of photographs, for travel")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--initial", type=int, help="replicas to start with; default all")
    args = parser.parse_args()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.what == "loop":
        loop_run((args.images or [640])[0])
        return
    if args.what == "bytes":
        bytes_run((args.images or [200])[0])
        return
    if args.what == "travel":
        travel_run(args.photos or parser.error("travel needs --photos"))
        return
    values = args.replicas if args.what == "sleep" else args.images or [1000, 10000]
    if args.one:
        if args.what == "sleep":
            sleep_run(values[0], args.latency, args.per_replica, args.initial)
        else:
            memory_run(values[0])
        return
    if args.what == "sleep":
        head = "replicas | images | busy once up | with ramp and tail | with start | start, s | ramp, s | tail, s"
    else:
        head = "images | s"
    columns = [*head.split(" | "), *(["spilled, MB"] if args.what == "sleep" else []), "driver, MB", "worker, MB"]
    columns += ["spilled, MB"] if args.what == "memory" else []
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns), flush=True)
    for value in values:  # each in a process of its own: peaks of memory are of one run
        flag = "--replicas" if args.what == "sleep" else "--images"
        command = [sys.executable, "-m", "tests.benchmarks.fleet", args.what, "--one", flag, str(value)]
        command += ["--latency", str(args.latency), "--per-replica", str(args.per_replica)]
        command += ["--initial", str(args.initial)] if args.initial else []
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()

"""Milliseconds a degradation takes for one sample, on one core: `python -m tests.benchmarks.degradations [--size 256]`

The image is smooth noise, float32, of `size` pixels a side; median and 90th percentile over keys, OpenCV at one thread.
A trainer that degrades on the fly takes no longer than that for a sample; the aim is under 150 ms at 256 pixels.
"""

from __future__ import annotations

import argparse
import time

import cv2
import numpy as np

from gmd_ray.images.degradation.degradations import PRESETS, sample_rng


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--presets", nargs="*", choices=list(PRESETS), default=list(PRESETS))
    args = parser.parse_args()
    cv2.setNumThreads(1)
    image = cv2.GaussianBlur(sample_rng("image").random((args.size, args.size, 3), dtype=np.float32), (0, 0), 2)
    print("| preset | median, ms | 90%, ms | CPU median, ms |")
    print("| --- | --- | --- | --- |")
    for name in args.presets:
        wall, cpu = [], []
        for key in range(args.samples + 3):
            start, used = time.perf_counter(), time.process_time()
            PRESETS[name](image, sample_rng(key))
            wall.append(1000 * (time.perf_counter() - start))
            cpu.append(1000 * (time.process_time() - used))
        wall, cpu = wall[3:], cpu[3:]  # the first ones warm up
        print(f"| {name} | {np.median(wall):.1f} | {np.percentile(wall, 90):.1f} | {np.median(cpu):.1f} |", flush=True)


if __name__ == "__main__":
    main()

"""CPU time that loading the settings takes, once the modules are imported.

    python -m tests.benchmarks.settings [--loads 20]

Each line is one set of arguments: the first load of the process, and the mean of those that follow it. The aim is below
30 ms. A file that `config=` names is parsed at every load; the presets that come with the package only at the first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from gmd_ray.config.load import load_config, save_config

CASES: tuple[tuple[str, ...], ...] = (
    (),
    ("preset=toy",),
    ("preset=deblur_reds", "data.root=/", "training.steps=9", "teacher.preset=vital"),
)


def seconds(args: Sequence[str], loads: int = 1) -> float:
    """The mean CPU time of a load."""
    start = time.process_time()
    for _ in range(loads):
        load_config(args)
    return (time.process_time() - start) / loads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, default=20)
    loads = parser.parse_args().loads
    with TemporaryDirectory() as folder:
        saved = Path(folder) / "config.yaml"
        save_config(load_config(["preset=toy"]), saved)
        for args in (*CASES, (f"config={saved}", "seed=1")):
            first, later = seconds(args), seconds(args, loads)
            shown = " ".join(args).replace(folder, "") or "no arguments"
            print(f"{1e3 * later:6.1f} ms, the first {1e3 * first:6.1f} ms: {shown}")


if __name__ == "__main__":
    main()

"""A driver process of its own, to be killed: python -m tests.generation.faults.drive ROOT ADDRESS

Its teacher makes one block of two batches, and waits in the next block's first until it is told to go on.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import ray

from gmd_ray.errors import GmdError
from gmd_ray.generation import generate
from tests.generation.world import World


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    world = World(Path(sys.argv[1]), on_ray=True)
    world.cfg.teacher.pool.num_cpus = 2  # of four: it is busy enough to reserve the whole cluster
    ray.init(address=sys.argv[2], log_to_driver=False, logging_level=logging.ERROR)
    try:
        print(generate(world.cfg, models=world.models(seconds=1.5, hold_after=2)))
    except GmdError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    main()

"""The five stages of a run in the driver's own process, without Ray (`ray.enabled=false`).

It is meant for a user with a debugger, and for tests of what a driver does. The stages are those of the Ray Data stream
(`stream.build_stream`), and make the same rows. What Ray adds is absent: blocks do not overlap, there is one replica of
each model, and no other process takes over. An image on which a model raises is isolated and fails as always; a model
that crashes or hangs takes the run with it, and no watchdog ends it.
"""

from __future__ import annotations

from collections.abc import Generator

import pyarrow as pa

from gmd_ray.config import Config
from gmd_ray.generation.attempts.log import AttemptLog
from gmd_ray.generation.fault_isolation import UNBOUNDED
from gmd_ray.generation.io_stages import input_blocks, read_arguments, read_images, write_arguments, write_rows
from gmd_ray.generation.loading import replica_of
from gmd_ray.generation.models import Models
from gmd_ray.generation.stages import Project, Restore, Score
from gmd_ray.images.listing import ImageFile
from gmd_ray.ray_utils import shutdown


def run_in_process(
    cfg: Config, files: list[ImageFile], store_url: str, token: str, log: AttemptLog, models: Models
) -> Generator[pa.Table, None, None]:
    """Take one block of photos after another through all stages, and yield the summary of each part that is written.

    All models are loaded before the first photo is read.

    Raises:
        GmdError: a model that cannot be loaded or that breaks its accelerator, storage that cannot be written, or a
            lost lock.
    """
    stages = [
        stage(replica_of(cfg, section, models, log, UNBOUNDED, own_process=False))
        for stage, section in ((Restore, "student"), (Project, "teacher"), (Score, "scorer"))
    ]
    reading = read_arguments(cfg, log, UNBOUNDED, own_process=False)
    writing = write_arguments(cfg, log, store_url, token)
    for block in input_blocks(files, cfg.generation.rows_per_block):
        if shutdown.ASKED.is_set():
            return
        table = read_images(block, **reading)
        for stage in stages:
            table = stage(table)
        yield write_rows(table, **writing)

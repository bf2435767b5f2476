"""What a teacher costs as its settings have it, from the config.json files of its directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ModelError
from gmd_ray.teachers.cost.codec import codec_factor, codec_flops
from gmd_ray.teachers.cost.dimensions import NO_INJECTION, FluxDimensions, Injection, image_tokens
from gmd_ray.teachers.cost.flops import Cost, modulation_flops, projection_cost, tile_grid, visits
from gmd_ray.teachers.flux.sampler import time_grid


@dataclass(frozen=True)
class TeacherFiles:
    """The config.json files of a FLUX directory."""

    size: FluxDimensions
    codec: Mapping[str, Any]
    scheduler: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> TeacherFiles:
        """From a local directory.

        Raises:
            ModelError: where one is missing, or another model's.
        """

        def read(name: str) -> dict[str, Any]:
            if not (path / name).is_file():
                raise ModelError(f"{path / name}: not found; a teacher directory holds transformer/, vae/, scheduler/")
            return json.loads((path / name).read_text())

        try:
            size = FluxDimensions.from_config(read("transformer/config.json"))
        except KeyError as error:
            raise ModelError(f"{path}/transformer/config.json: no {error}; not a FluxTransformer2DModel's") from error
        return cls(size, read("vae/config.json"), read("scheduler/scheduler_config.json"))

    @property
    def multiple(self) -> int:
        """Side of a token in pixels."""
        return 2 * codec_factor(self.codec)


def teacher_cost(
    files: TeacherFiles,
    cfg: TeacherConfig,
    batch: int,
    height: int,
    width: int,
    number_bytes: int = 2,
    *,
    codec: bool = True,
) -> Cost:
    """Of `Teacher.project` on a batch of images of that size, as the settings have it.

    Without `codec` the autoencoder is left out, which is slow to count. Left out always: what tiles of the
    autoencoder's own (`teacher.vae_tile_above`) compute twice.
    """
    inverts = has_inversion(cfg)
    tiles, tall, wide = tile_grid(height, width, cfg.tile, cfg.tile_overlap)
    times = time_grid(cfg.steps, image_tokens(tall, wide, files.multiple), files.scheduler, cfg.strength)
    cost = projection_cost(
        files.size,
        batch=batch,
        height=height,
        width=width,
        text=cfg.max_sequence_length,
        steps=cfg.steps,
        solver=cfg.solver,
        true_cfg=cfg.true_cfg is not None,
        true_cfg_interval=cfg.true_cfg_interval,
        times=times,
        injection=Injection.from_config(cfg, files.size) if inverts else NO_INJECTION,
        cache=cfg.cache,
        fp8_cache=cfg.cache_dtype == "fp8",
        inverts=inverts,
        context=has_context(cfg),
        tile=cfg.tile,
        tile_overlap=cfg.tile_overlap,
        multiple=files.multiple,
        number_bytes=number_bytes,
    )
    side = files.multiple
    pixels = -(-tall // side) * side, -(-wide // side) * side
    return replace(
        cost,
        codec_flops=tiles * batch * codec_flops(files.codec, *pixels) if codec else 0,
        table_flops=modulation_flops(files.size, table_rows(cfg, times)),
    )


def has_inversion(cfg: TeacherConfig) -> bool:
    """Whether there is a pass ahead of the reconstruction; SDEdit and Kontext start from noise that they draw."""
    return cfg.method not in ("sdedit", "kontext")


def has_context(cfg: TeacherConfig) -> bool:
    """Whether each forward sees the image's own tokens beside the latents'."""
    return cfg.method == "kontext"


def table_rows(cfg: TeacherConfig, times: Sequence[float]) -> int:
    """Different (time, guidance, prompt) of a projection: rows of the modulation tables."""
    low, high = cfg.true_cfg_interval
    found = set()
    for _, t in visits(times, cfg.solver, inverse=True) if has_inversion(cfg) else ():
        found.add((t, cfg.inversion_guidance, cfg.inversion_prompt))
    for _, t in visits(times, cfg.solver):
        found.add((t, cfg.guidance, cfg.prompt))
        if cfg.true_cfg is not None and low <= t <= high:
            found.add((t, cfg.guidance, cfg.inversion_prompt))
    return len(found)

"""The work of a projection: its evaluations and its cache, from a teacher's config.json files and its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.images.tiling import tile_spans
from gmd_ray.teachers.cost.codec import codec_factor
from gmd_ray.teachers.cost.dimensions import NO_INJECTION, FluxDimensions, Injection, dimensions_of, image_tokens
from gmd_ray.teachers.flux.sampler import Slot, injected_slots, schedule, time_grid


@dataclass(frozen=True)
class TeacherFiles:
    """The config.json files of a FLUX directory."""

    size: FluxDimensions
    codec: Mapping[str, Any]
    scheduler: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> TeacherFiles:
        """Read them from a local directory.

        Raises:
            ModelError: a file is missing, or belongs to another model.
        """

        def read(name: str) -> dict[str, Any]:
            if not (path / name).is_file():
                raise ModelError(f"{path / name}: not found; a teacher directory holds transformer/, vae/, scheduler/")
            return json.loads((path / name).read_text())

        try:
            size = dimensions_of(read("transformer/config.json"))
        except KeyError as error:
            raise ModelError(
                f"{path}/transformer/config.json: no {error}; it does not belong to a transformer of FLUX"
            ) from error
        return cls(size, read("vae/config.json"), read("scheduler/scheduler_config.json"))

    @property
    def multiple(self) -> int:
        """Side of a token in pixels."""
        return 2 * codec_factor(self.codec)


class TileGrid(NamedTuple):
    """The tiles of an image, all of one size in pixels; an image without tiles is one tile."""

    number: int
    height: int
    width: int


@dataclass(frozen=True)
class Workload:
    """One projection of a batch of images of one size: all that its FLOPs and its memory depend on."""

    size: FluxDimensions
    batch: int
    height: int
    """Height of the images in pixels, before padding."""
    width: int
    text: int
    """Tokens of each prompt."""
    steps: int
    """Intervals of the time grid, for each pass."""
    solver: str = "euler"
    """euler, midpoint or fireflow."""
    times: Sequence[float] | None = None
    """Noisy to clean, as `sampler.time_grid` gives them. None is an even grid from 1 to 0."""
    true_cfg: tuple[float, float] | None = None
    """Noise levels, both ends included, at which the reconstruction evaluates the inversion prompt too."""
    guidance: float | None = None
    inversion_guidance: float | None = None
    prompt: str = ""
    inversion_prompt: str = ""
    injection: Injection = NO_INJECTION
    cache: str = "kv"
    """kv; input, the attention's input; lockstep, which repeats the inversion's injected evaluations."""
    fp8_cache: bool = False
    """Keep the cache in 8 bits, with a scale for each row."""
    inverts: bool = True
    """False for SDEdit and Kontext, which reconstruct alone."""
    context: bool = False
    """True for Kontext, whose forwards see the image's own tokens beside the latents'."""
    tile: int = 0
    """Side of the tiles in pixels; 0 for whole images."""
    tile_overlap: int = 0
    multiple: int = 16
    """Side of a token in pixels: twice the autoencoder's factor."""
    number_bytes: int = 2
    """Bytes of a weight and of an activation; 2 for bfloat16."""
    codec: Mapping[str, Any] | None = None
    """Config of the autoencoder; None leaves it out of the cost."""

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: more injected intervals than intervals.
        """
        if self.injection.steps > self.steps:
            raise ConfigError(f"teacher.injection.steps={self.injection.steps}: at most teacher.steps={self.steps}")

    @classmethod
    def from_config(
        cls, files: TeacherFiles, cfg: TeacherConfig, batch: int, height: int, width: int, number_bytes: int = 2
    ) -> Workload:
        """`Teacher.project` on a batch of images of that size in pixels, under these settings.

        Raises:
            ConfigError: injection into blocks or intervals that do not exist.
        """
        inverts = cfg.method not in ("sdedit", "kontext")
        # FLUX's schedule depends on the number of tokens that one forward sees, so on those of a tile.
        _, tall, wide = tile_grid(height, width, cfg.tile, cfg.tile_overlap)
        tokens = image_tokens(tall, wide, files.multiple)
        grid = files.size.family.schedule if cfg.schedule == "auto" else cfg.schedule
        return cls(
            size=files.size,
            batch=batch,
            height=height,
            width=width,
            text=cfg.max_sequence_length,
            steps=cfg.steps,
            solver=cfg.solver,
            times=time_grid(cfg.steps, tokens, files.scheduler, cfg.strength, grid),
            true_cfg=None if cfg.true_cfg is None else cfg.true_cfg_interval,
            guidance=cfg.guidance,
            inversion_guidance=cfg.inversion_guidance,
            prompt=cfg.prompt,
            inversion_prompt=cfg.inversion_prompt,
            injection=Injection.from_config(cfg, files.size) if inverts else NO_INJECTION,
            cache=cfg.cache,
            fp8_cache=cfg.cache_dtype == "fp8",
            inverts=inverts,
            context=cfg.method == "kontext",
            tile=cfg.tile,
            tile_overlap=cfg.tile_overlap,
            multiple=files.multiple,
            number_bytes=number_bytes,
            codec=files.codec,
        )

    @property
    def tiles(self) -> TileGrid:
        """The tiles of each image, in pixels before padding."""
        return tile_grid(self.height, self.width, self.tile, self.tile_overlap)

    @property
    def padded_tile(self) -> tuple[int, int]:
        """Height and width of a tile in pixels, padded to whole tokens."""
        _, tall, wide = self.tiles
        return tall + -tall % self.multiple, wide + -wide % self.multiple

    @property
    def image_tokens(self) -> int:
        """Image tokens that one forward sees for each tile."""
        _, tall, wide = self.tiles
        return image_tokens(tall, wide, self.multiple) * (2 if self.context else 1)

    @property
    def inversion(self) -> list[tuple[Slot, float]]:
        """The evaluations of the inversion of one tile; none where the method does not invert."""
        return schedule(self._grid, self.solver, inverse=True) if self.inverts else []

    @property
    def reconstruction(self) -> list[tuple[Slot, float]]:
        """The evaluations of the reconstruction of one tile, under the prompt."""
        return schedule(self._grid, self.solver)

    @property
    def guided(self) -> list[tuple[Slot, float]]:
        """Those of the reconstruction's evaluations that are made under the inversion prompt too."""
        if self.true_cfg is None:
            return []
        low, high = self.true_cfg
        return [(slot, t) for slot, t in self.reconstruction if low <= t <= high]

    @property
    def injected(self) -> list[Slot]:
        """The evaluations of the inversion that leave a bank for the reconstruction."""
        return injected_slots(self.solver, self.steps, self.injection.steps)

    @property
    def prompts(self) -> int:
        """Different prompts of all evaluations."""
        of_inversion = {self.inversion_prompt} if self.inversion or self.guided else set()
        return len(of_inversion | {self.prompt})

    def modulation_rows(self) -> int:
        """Rows of the modulation tables: the different (time, guidance, prompt) of all evaluations."""
        rows = {(t, self.inversion_guidance, self.inversion_prompt) for _, t in self.inversion}
        rows |= {(t, self.guidance, self.prompt) for _, t in self.reconstruction}
        rows |= {(t, self.guidance, self.inversion_prompt) for _, t in self.guided}
        return len(rows)

    def bank_bytes(self, *, fp8: bool = False) -> int:
        """Bytes that one injected evaluation of one tile leaves, all ranks together."""
        return bank_bytes(
            self.size,
            self.batch,
            self.image_tokens,
            self.text,
            self.injection,
            self.number_bytes,
            cache=self.cache,
            fp8=fp8,
        )

    def cache_bytes(self) -> int:
        """Bytes that wait for the reconstruction of a tile when its inversion has ended, all ranks together."""
        kept = len(self.injected)
        if not kept:
            return 0
        if self.cache == "lockstep":
            # The latents of each injected evaluation in float32, and one bank that is filled anew for each replay.
            latents = self.batch * self.image_tokens * self.size.in_channels * 4
            return kept * latents + self.bank_bytes()
        # Banks in 8 bits are packed from, and unpacked to, one more in the model's dtype.
        return kept * self.bank_bytes(fp8=self.fp8_cache) + (self.bank_bytes() if self.fp8_cache else 0)

    def activation_bytes(self) -> int:
        """Bytes of the transformer's activations, a rough bound: see `Family.widths`."""
        tokens = self.image_tokens + self.text
        return self.size.family.widths * self.batch * tokens * self.size.width * self.number_bytes

    def step_cache_bytes(self) -> int:
        """Bytes that a step cache keeps during a pass: for each prompt two tensors (image tokens, width), and four
        that a decision takes."""
        prompts = 2 if self.guided else 1
        return 2 * (prompts + 2) * self.batch * self.image_tokens * self.size.width * self.number_bytes

    @property
    def _grid(self) -> Sequence[float]:
        return self.times if self.times is not None else [1 - i / self.steps for i in range(self.steps + 1)]


def tile_grid(height: int, width: int, tile: int, overlap: int) -> TileGrid:
    """The tiles that `images.tiling.tiled` cuts from an image of that many pixels; `tile` 0 cuts nothing."""
    if not tile:
        return TileGrid(1, height, width)
    count = len(tile_spans(height, tile, overlap)) * len(tile_spans(width, tile, overlap))
    return TileGrid(count, min(tile, height), min(tile, width))


def bank_bytes(
    size: FluxDimensions,
    batch: int,
    image: int,
    text: int,
    injection: Injection,
    number_bytes: int = 2,
    *,
    cache: str = "kv",
    fp8: bool = False,
) -> int:
    """Bytes that one evaluation leaves for its replay: keys and values, or the attention's input.

    See docs/decisions.md, "Memory and cost", for FLUX.1-dev's.

    Args:
        image, text: tokens of each image.
        number_bytes: of one number in the model's dtype.
        cache: `input` for the attention's input, anything else for keys and values.
        fp8: one byte for each number, and a scale of `number_bytes` for each row.
    """
    tokens = image + (text if injection.text else 0)
    if cache == "input" and injection.keys:
        # One tensor (B, tokens, width) for each block; a token is a row.
        rows, row = injection.blocks * batch * tokens, size.width
    else:
        # Keys and values (B, tokens, heads, head_dim), or values alone; a token of a head is a row.
        rows, row = injection.blocks * batch * tokens * size.heads * (2 if injection.keys else 1), size.head_dim
    return rows * (row + number_bytes if fp8 else row * number_bytes)

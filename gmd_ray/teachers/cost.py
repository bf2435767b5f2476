"""What a projection costs, from the transformer's config alone: forwards, FLOPs, bytes (teacher.md 3, 4).

FLOPs are those of matrix products and attention, two for a multiply and an add, as
`torch.utils.flop_counter.FlopCounterMode` counts them. What an autoencoder adds is in `codec.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError, ModelError, nearest
from gmd_ray.images.tiling import tile_spans
from gmd_ray.teachers.codec_cost import codec_factor, codec_flops
from gmd_ray.teachers.ode import Slot, integrate, paired_slots, time_grid

TIME_CHANNELS = 256
"""Sinusoidal features of timestep and guidance; diffusers fixes them in CombinedTimestepGuidanceTextProjEmbeddings."""

ACTIVATION_WIDTHS = 18
"""Live activations at the widest point of a block, in tensors of (tokens, width): 17.1 to 17.6 in eager mode."""


@dataclass(frozen=True)
class FluxDimensions:
    """The dimensions of a FluxTransformer2DModel."""

    double: int
    single: int
    heads: int
    head_dim: int
    in_channels: int
    out_channels: int
    text_width: int
    pooled_width: int
    guidance: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FluxDimensions:
        """From the dict of `transformer/config.json`.

        Raises:
            KeyError: a config of another model.
        """
        return cls(
            double=config["num_layers"],
            single=config["num_single_layers"],
            heads=config["num_attention_heads"],
            head_dim=config["attention_head_dim"],
            in_channels=config["in_channels"],
            out_channels=(config.get("out_channels") or config["in_channels"]) * config.get("patch_size", 1) ** 2,
            text_width=config["joint_attention_dim"],
            pooled_width=config["pooled_projection_dim"],
            guidance=config["guidance_embeds"],
        )

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def blocks(self) -> int:
        return self.double + self.single

    def modulation_parameters(self) -> int:
        """Of the time, guidance and text embedders and every AdaLN: one row for each image (teacher.md 4.3)."""
        d = self.width
        time = TIME_CHANNELS * d + d * d + 2 * d
        pooled = self.pooled_width * d + d * d + 2 * d
        return time * (1 + self.guidance) + pooled + (12 * self.double + 3 * self.single + 2) * (d * d + d)

    def modulation_columns(self) -> int:
        """Numbers of one row of all adaptive norms."""
        return (12 * self.double + 3 * self.single + 2) * self.width

    def parameters(self) -> int:
        d = self.width
        ends = (self.in_channels + self.text_width + 2) * d + (d + 1) * self.out_channels
        double = 24 * d * d + 18 * d + 4 * self.head_dim  # of both streams: q, k, v, out; MLP; four RMS scales
        single = 12 * d * d + 8 * d + 2 * self.head_dim
        return self.modulation_parameters() + ends + double * self.double + single * self.single

    def split_parameters(self) -> int:
        """Of them, those that ranks share out: the projections into and out of attention and MLP, but for the biases
        behind a sum over ranks."""
        d = self.width
        return self.double * (24 * d * d + 14 * d) + self.single * (12 * d * d + 7 * d)

    def parameters_of_rank(self, ranks: int) -> int:
        """What each of the ranks of a replica holds under tensor parallelism; under Ulysses it is all of them."""
        split = self.split_parameters()
        return self.parameters() - split + split // ranks


@dataclass(frozen=True)
class Injection:
    """How many blocks of each kind take keys and values from the inversion, and which."""

    double: int
    single: int
    steps: int
    """The first n intervals of the reconstruction."""
    keys: bool = True
    """K and V, or V alone."""
    text: bool = True
    """Those of all tokens, or of image tokens alone."""

    @classmethod
    def from_config(cls, teacher: TeacherConfig, size: FluxDimensions) -> Injection:
        """What `teacher.injection` means for a model of that size.

        Raises:
            ConfigError: a block that the model does not have.
        """
        cfg = teacher.injection
        steps = teacher.steps if cfg.steps is None else cfg.steps
        if not steps:
            return NO_INJECTION
        # Imported here: attention.py brings diffusers, seconds that a plan without injection does not need.
        from gmd_ray.teachers.attention import select_blocks

        names = [f"transformer_blocks.{i}" for i in range(size.double)]
        names += [f"single_transformer_blocks.{i}" for i in range(size.single)]
        blocks = select_blocks(names, cfg.blocks)
        single = sum(name.startswith("single_") for name in blocks)
        return cls(
            double=len(blocks) - single,
            single=single,
            steps=steps,
            keys=cfg.tensors == "kv",
            text=cfg.tokens == "all",
        )

    @property
    def blocks(self) -> int:
        return self.double + self.single

    def kills_text(self, size: FluxDimensions) -> bool:
        """Whether no image token can see the text stream any more (teacher.md 1.5)."""
        return self.keys and self.text and self.blocks == size.blocks


NO_INJECTION = Injection(double=0, single=0, steps=0)


@dataclass(frozen=True)
class Cost:
    """Of one projection of a batch."""

    forwards: int
    """Model evaluations, each of the whole batch."""
    flops: int
    """Of the transformer, for each batch."""
    weight_bytes: int
    cache_bytes: int
    """What waits for the reconstruction at its peak, when the inversion has ended; of one tile where tiles are."""
    activation_bytes: int
    """Of the transformer, a rough figure: see ACTIVATION_WIDTHS."""
    codec_flops: int = 0
    table_flops: int = 0
    """Of the modulation rows, computed once for all images of a size."""


def image_tokens(height: int, width: int, multiple: int = 16) -> int:
    """Packed tokens of an image of that many pixels, padded to `multiple`, the side of a token in pixels."""
    return -(-height // multiple) * -(-width // multiple)


def evaluations(solver: str, steps: int) -> int:
    """Model evaluations of one pass (teacher.md 0, 1.1).

    Raises:
        ConfigError: for an unknown solver.
    """
    counts = {"euler": steps, "midpoint": 2 * steps, "fireflow": steps + 1}
    if solver not in counts:
        raise ConfigError(f"teacher.solver={solver!r}: {nearest(solver, counts)}")
    return counts[solver]


def injected_evaluations(solver: str, steps: int) -> int:
    """Evaluations of one pass whose keys and values are kept, for `steps` injected intervals; each is one cache slot.

    FireFlow's opening evaluation is not among them: the other pass has none at that point of the grid.
    """
    return evaluations(solver, steps) - (solver == "fireflow")


def forward_flops(
    size: FluxDimensions,
    batch: int,
    image: int,
    text: int,
    replay: Injection | None = None,
    *,
    cache: str = "kv",
    tables: bool = False,
) -> int:
    """FLOPs of one forward.

    Args:
        image, text: tokens of each image.
        replay: the injection of this forward where what it makes superfluous is not computed (teacher.md 4.3): the
            projections of the keys and values that are replaced and, where the injection kills the text, the text
            tokens. Default: everything is computed.
        cache: kv; input projects the keys and values of the inversion's input anew.
        tables: the modulation comes from tables, see `modulation_flops`.
    """
    d, replay = size.width, replay or NO_INJECTION
    keys = image + text
    text = 0 if replay.kills_text(size) else text
    rows = image + text
    ends = image * size.in_channels * d + text * size.text_width * d + image * d * size.out_channels
    # 12 d^2 a token in either kind of block: q, k, v, out (4) and the MLP (8).
    if cache == "input" and replay.keys:
        skipped = replay.blocks * 2 * (rows - keys) * d * d  # of dead text too, keys and values are projected
    else:
        skipped = replay.blocks * (2 if replay.keys else 1) * (rows if replay.text else image) * d * d
    blocks = size.blocks * (12 * rows * d * d + 2 * rows * keys * d) - skipped
    return 2 * batch * (ends + blocks) + (0 if tables else modulation_flops(size, batch))


def modulation_flops(size: FluxDimensions, rows: int) -> int:
    """Of the embeddings of time, guidance and pooled prompt, and of every adaptive norm's row."""
    d = size.width
    time = TIME_CHANNELS * d + d * d
    pooled = size.pooled_width * d + d * d
    return 2 * rows * (time * (1 + size.guidance) + pooled + size.modulation_columns() * d)


def cache_bytes(
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
    """What one captured evaluation leaves: keys and values, or the attention's input (teacher.md 3).

    Args:
        fp8: in 8 bits, with a scale of `number_bytes` for each token of each head, or each token of an input.
    """
    tokens = image + (text if injection.text else 0)
    whole = cache == "input" and injection.keys
    rows = injection.blocks * batch * tokens * (1 if whole else size.heads * (2 if injection.keys else 1))
    numbers = size.width if whole else size.head_dim
    return rows * (numbers + number_bytes if fp8 else numbers * number_bytes)


def projection_cost(
    size: FluxDimensions,
    *,
    batch: int,
    height: int,
    width: int,
    text: int,
    steps: int,
    solver: str = "euler",
    true_cfg: bool = False,
    true_cfg_interval: tuple[float, float] = (0.0, 1.0),
    times: Sequence[float] | None = None,
    injection: Injection = NO_INJECTION,
    cache: str = "kv",
    fp8_cache: bool = False,
    inverts: bool = True,
    tile: int = 0,
    tile_overlap: int = 0,
    multiple: int = 16,
    number_bytes: int = 2,
) -> Cost:
    """One projection: inversion, then reconstruction. The autoencoder and the tables are in `teacher_cost` alone.

    Args:
        height, width: of the images, in pixels.
        text: tokens of each prompt.
        steps: intervals of each pass.
        solver: euler, midpoint or fireflow.
        true_cfg: evaluate the null prompt too, in the reconstruction, at noise levels in `true_cfg_interval`.
        times: noisy to clean, as `ode.time_grid` gives them; needed for an interval that is not everything.
        injection: what it makes superfluous is not computed, see `forward_flops`.
        cache: kv, input, or lockstep, which runs the inversion's evaluations a second time.
        inverts: without, the reconstruction alone (SDEdit).
        tile: side of the tiles in pixels, 0 for whole images.
        multiple: side of a token in pixels: 2 x the codec's factor.
        number_bytes: of weights and activations; 2 for bfloat16.

    Raises:
        ConfigError: for an unknown solver, or more injected intervals than there are.
    """
    if injection.steps > steps:
        raise ConfigError(f"teacher.injection.steps={injection.steps}: at most teacher.steps={steps}")
    tiles, height, width = tile_grid(height, width, tile, tile_overlap)
    image = image_tokens(height, width, multiple)
    each, kept = evaluations(solver, steps), injected_evaluations(solver, injection.steps)
    grid = list(times) if times is not None else [1 - i / steps for i in range(steps + 1)]
    low, high = true_cfg_interval
    guided = [slot for slot, t in _visits(grid, solver) if true_cfg and low <= t <= high]
    paired = paired_slots(solver, steps)
    replays = kept + sum(slot.interval < injection.steps and slot in paired for slot in guided)
    again = kept if cache == "lockstep" else 0
    forwards = (each if inverts else 0) + each + len(guided) + again
    plain = forward_flops(size, batch, image, text, tables=True)
    replay = forward_flops(size, batch, image, text, injection, cache=cache, tables=True)
    bank = cache_bytes(size, batch, image, text, injection, number_bytes, cache=cache)
    stored = cache_bytes(size, batch, image, text, injection, number_bytes, cache=cache, fp8=fp8_cache)
    if cache == "lockstep":
        held = bank + kept * batch * image * size.in_channels * 4
    else:
        held = kept * stored + (bank if fp8_cache else 0)
    return Cost(
        forwards=tiles * forwards,
        flops=tiles * ((forwards - replays) * plain + replays * replay),
        weight_bytes=size.parameters() * number_bytes,
        cache_bytes=held if kept else 0,
        activation_bytes=ACTIVATION_WIDTHS * batch * (image + text) * size.width * number_bytes,
    )


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
    inverts = cfg.method != "sdedit"
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
        table_flops=modulation_flops(files.size, table_rows(cfg, times, inverts)),
    )


def table_rows(cfg: TeacherConfig, times: Sequence[float], inverts: bool = True) -> int:
    """Different (time, guidance, prompt) of a projection: rows of the modulation tables."""
    low, high = cfg.true_cfg_interval
    found = set()
    for _, t in _visits(times, cfg.solver, inverse=True) if inverts else ():
        found.add((t, cfg.inversion_guidance, cfg.inversion_prompt))
    for _, t in _visits(times, cfg.solver):
        found.add((t, cfg.guidance, cfg.prompt))
        if cfg.true_cfg is not None and low <= t <= high:
            found.add((t, cfg.guidance, cfg.inversion_prompt))
    return len(found)


def tile_grid(height: int, width: int, tile: int, overlap: int) -> tuple[int, int, int]:
    """How many tiles of which height and width, as `images.tiling.tiled` cuts them."""
    if not tile:
        return 1, height, width
    count = len(tile_spans(height, tile, overlap)) * len(tile_spans(width, tile, overlap))
    return count, min(tile, height), min(tile, width)


def _visits(times: Sequence[float], solver: str, *, inverse: bool = False) -> list[tuple[Slot, float]]:
    """Where a pass evaluates the velocity."""
    found: list[tuple[Slot, float]] = []

    def note(z: torch.Tensor, t: float, slot: Slot) -> torch.Tensor:
        found.append((slot, t))
        return z

    integrate(torch.zeros(()), list(times), note, solver, inverse=inverse)
    return found

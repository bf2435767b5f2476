"""What a projection costs, from the transformer's config alone: forwards, FLOPs, bytes (teacher.md 3, 4).

FLOPs are those of matrix products and attention, two for a multiply and an add, as
`torch.utils.flop_counter.FlopCounterMode` counts them. What an autoencoder adds is in `codec_cost.py`; a whole teacher
under its settings is in `teacher_cost.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gmd_ray.errors import ConfigError, nearest
from gmd_ray.images.tiling import tile_spans
from gmd_ray.teachers.cost.dimensions import NO_INJECTION, TIME_CHANNELS, FluxDimensions, Injection, image_tokens
from gmd_ray.teachers.flux.sampler import Slot, integrate, paired_slots

ACTIVATION_WIDTHS = 18
"""Live activations at the widest point of a block, in tensors of (tokens, width): 17.1 to 17.6 in eager mode."""


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
    context: bool = False,
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
        inverts: without, the reconstruction alone (SDEdit, Kontext).
        context: each forward sees the image's own tokens beside the latents' (Kontext).
        tile: side of the tiles in pixels, 0 for whole images.
        multiple: side of a token in pixels: 2 x the codec's factor.
        number_bytes: of weights and activations; 2 for bfloat16.

    Raises:
        ConfigError: for an unknown solver, or more injected intervals than there are.
    """
    if injection.steps > steps:
        raise ConfigError(f"teacher.injection.steps={injection.steps}: at most teacher.steps={steps}")
    tiles, height, width = tile_grid(height, width, tile, tile_overlap)
    image = image_tokens(height, width, multiple) * (2 if context else 1)
    each, kept = evaluations(solver, steps), injected_evaluations(solver, injection.steps)
    grid = list(times) if times is not None else [1 - i / steps for i in range(steps + 1)]
    low, high = true_cfg_interval
    guided = [slot for slot, t in visits(grid, solver) if true_cfg and low <= t <= high]
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


def tile_grid(height: int, width: int, tile: int, overlap: int) -> tuple[int, int, int]:
    """How many tiles of which height and width, as `images.tiling.tiled` cuts them."""
    if not tile:
        return 1, height, width
    count = len(tile_spans(height, tile, overlap)) * len(tile_spans(width, tile, overlap))
    return count, min(tile, height), min(tile, width)


def visits(times: Sequence[float], solver: str, *, inverse: bool = False) -> list[tuple[Slot, float]]:
    """Where a pass evaluates the velocity."""
    found: list[tuple[Slot, float]] = []

    def note(z: torch.Tensor, t: float, slot: Slot) -> torch.Tensor:
        found.append((slot, t))
        return z

    integrate(torch.zeros(()), list(times), note, solver, inverse=inverse)
    return found

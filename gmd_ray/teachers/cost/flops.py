"""The cost of a projection, from config files alone: forward passes, FLOPs and bytes.

FLOPs are those of matrix products and attention, two for a multiply and an add, as
`torch.utils.flop_counter.FlopCounterMode` counts them. See docs/decisions.md, "Memory and cost".
"""

from __future__ import annotations

from dataclasses import dataclass

from gmd_ray.teachers.cost.codec import codec_flops
from gmd_ray.teachers.cost.dimensions import NO_INJECTION, FluxDimensions, Injection
from gmd_ray.teachers.cost.workload import Workload


@dataclass(frozen=True)
class ProjectionCost:
    """The cost of one projection of a batch of images."""

    forwards: int
    """Evaluations of the transformer, each of one tile of every image of the batch."""
    flops: int
    """FLOPs of the transformer for the whole batch, without the modulation tables."""
    weight_bytes: int
    """Bytes of all weights of the transformer."""
    cache_bytes: int
    """Bytes that wait for the reconstruction when the inversion of a tile has ended, all ranks together."""
    activation_bytes: int
    """Bytes of the transformer's activations, a rough bound."""
    codec_flops: int = 0
    """FLOPs of the autoencoder for the whole batch."""
    table_flops: int = 0
    """FLOPs of the modulation tables, computed once for all images of a size."""


def forward_flops(
    size: FluxDimensions,
    batch: int,
    image: int,
    text: int,
    replay: Injection | None = None,
    *,
    cache: str = "kv",
    tables: bool = False,
    embeds_text: bool = True,
) -> int:
    """FLOPs of one forward pass.

    Args:
        image, text: tokens of each image.
        replay: the injection of this forward, whose superfluous work is not computed: the projections of replaced keys
            and values and, where the injection kills the text, the text tokens. None computes everything. See
            docs/method.md, "Injection".
        cache: `input` projects keys and values from the inversion's attention input; kv takes them as they are.
        tables: the modulation comes from tables, see `modulation_flops`.
        embeds_text: the text is embedded in this forward; a projection does it once, see `text_flops`.
    """
    d, replay = size.width, replay or NO_INJECTION
    # Keys cover all tokens; queries, and the rows of every other product, leave dead text out.
    keys = image + text
    text = 0 if replay.kills_text(size) else text
    rows = image + text
    # Multiply-adds from here on. The ends: latents and text are embedded to width d, and the image is projected out.
    ends = image * (size.in_channels + size.out_channels) * d + (text * size.text_width * d if embeds_text else 0)
    # A replay need not project what the bank replaces; each projection of K or V is d^2 for a token.
    if cache == "input" and replay.keys:
        # Keys and values are projected from the bank's input for all tokens. Where the text is dead, `rows` does not
        # count its tokens, so the number is negative there: work to add.
        skipped = replay.blocks * 2 * (rows - keys) * d * d
    else:
        replaced = rows if replay.text else image
        skipped = replay.blocks * (2 if replay.keys else 1) * replaced * d * d
    # Attention is Q K^T and P V, rows x keys x d each.
    blocks = size.blocks * (rows * size.block_products() + 2 * rows * keys * d) - skipped
    # Without tables, FLUX.1 computes a modulation for each image; one serves a whole batch of FLUX.2.
    modulations = 0 if tables else batch if size.family.tables else 1
    return 2 * batch * (ends + blocks) + modulation_flops(size, modulations)


def modulation_flops(size: FluxDimensions, rows: int) -> int:
    """FLOPs of the embeddings of time, guidance and pooled prompt and of all adaptive norms, for that many rows."""
    return 2 * rows * size.modulation_products()


def text_flops(size: FluxDimensions, text: int) -> int:
    """FLOPs of the embedding of a prompt of that many tokens."""
    return 2 * text * size.text_width * size.width


def projection_cost(work: Workload) -> ProjectionCost:
    """The cost of an inversion and a reconstruction, or of a reconstruction alone.

    Left out is the work that tiles of the autoencoder's own (`teacher.vae_tile_above`) do twice.

    Raises:
        ConfigError: for an unknown solver.
    """
    injected = set(work.injected)
    guided = [slot for slot, _ in work.guided]
    # Lockstep makes each injected evaluation of the inversion a second time, beside its replay.
    repeated = len(injected) if work.cache == "lockstep" else 0
    forwards = len(work.inversion) + len(work.reconstruction) + len(guided) + repeated
    # Both prompts of a guided evaluation replay the same bank, so such a slot counts twice.
    replays = len(injected) + sum(slot in injected for slot in guided)
    shape = (work.size, work.batch, work.image_tokens, work.text)
    tables = work.size.family.tables
    plain = forward_flops(*shape, tables=tables, embeds_text=False)
    replay = forward_flops(*shape, work.injection, cache=work.cache, tables=tables, embeds_text=False)
    prompts = work.prompts * text_flops(work.size, work.text)
    tiles = work.tiles.number
    codec = 0 if work.codec is None else codec_flops(work.codec, *work.padded_tile)
    return ProjectionCost(
        forwards=tiles * forwards,
        flops=tiles * ((forwards - replays) * plain + replays * replay + prompts),
        weight_bytes=work.size.parameters() * work.number_bytes,
        cache_bytes=work.cache_bytes(),
        activation_bytes=work.activation_bytes(),
        codec_flops=tiles * work.batch * codec,
        table_flops=modulation_flops(work.size, work.modulation_rows() if tables else 0),
    )

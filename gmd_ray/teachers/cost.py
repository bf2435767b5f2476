"""What a projection costs, from the transformer's config alone: forwards, FLOPs, bytes (teacher.md 3, 4).

FLOPs are those of matrix products and attention, two for a multiply and an add, as
`torch.utils.flop_counter.FlopCounterMode` counts them. The autoencoder is left out: below 0.4 % of a projection's
FLOPs (teacher.md 4.1), though its decoder's activations can exceed the transformer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError, nearest

TIME_CHANNELS = 256
"""Sinusoidal features of timestep and guidance; diffusers fixes them in CombinedTimestepGuidanceTextProjEmbeddings."""

ACTIVATION_WIDTHS = 16
"""Live activations at the widest point of a single block, in tensors of (tokens, width): residual, normed input,
attention output, MLP (4) and their concatenation (5) make 12; four more for the output and the temporaries of RoPE."""


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
    weight_bytes: int
    cache_bytes: int
    """Keys and values at their peak, when the inversion has ended."""
    activation_bytes: int
    """Of the transformer, a rough figure: see ACTIVATION_WIDTHS."""


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


def forward_flops(size: FluxDimensions, batch: int, image: int, text: int, replay: Injection | None = None) -> int:
    """FLOPs of one forward.

    Args:
        image, text: tokens of each image.
        replay: the injection of this forward where what it makes superfluous is not computed (teacher.md 4.3): the
            projections of the keys and values that are replaced and, where the injection kills the text, the text
            tokens. Default: everything is computed.
    """
    d, replay = size.width, replay or NO_INJECTION
    keys = image + text
    text = 0 if replay.kills_text(size) else text
    rows = image + text
    ends = image * size.in_channels * d + text * size.text_width * d + image * d * size.out_channels
    # 12 d^2 a token in either kind of block: q, k, v, out (4) and the MLP (8).
    skipped = replay.blocks * (2 if replay.keys else 1) * (rows if replay.text else image) * d * d
    blocks = size.blocks * (12 * rows * d * d + 2 * rows * keys * d) - skipped
    time = TIME_CHANNELS * d + d * d
    modulation = time * (1 + size.guidance) + size.pooled_width * d + d * d
    modulation += (12 * size.double + 3 * size.single + 2) * d * d
    return 2 * batch * (ends + blocks + modulation)


def cache_bytes(
    size: FluxDimensions, batch: int, image: int, text: int, injection: Injection, number_bytes: int = 2
) -> int:
    """Keys and values that one captured evaluation leaves (teacher.md 3)."""
    tokens = image + (text if injection.text else 0)
    return injection.blocks * (2 if injection.keys else 1) * batch * tokens * size.width * number_bytes


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
    injection: Injection = NO_INJECTION,
    multiple: int = 16,
    number_bytes: int = 2,
) -> Cost:
    """One projection: inversion, then reconstruction.

    Args:
        height, width: of the images (or tiles), in pixels.
        text: tokens of each prompt.
        steps: intervals of each pass.
        solver: euler, midpoint or fireflow.
        true_cfg: evaluate the null prompt too, in the reconstruction.
        injection: what it makes superfluous is not computed, see `forward_flops`.
        multiple: side of a token in pixels: 2 x the codec's factor.
        number_bytes: of weights and activations; 2 for bfloat16.

    Raises:
        ConfigError: for an unknown solver, or more injected intervals than there are.
    """
    if injection.steps > steps:
        raise ConfigError(f"teacher.injection.steps={injection.steps}: at most teacher.steps={steps}")
    image = image_tokens(height, width, multiple)
    each, guided = evaluations(solver, steps), 2 if true_cfg else 1
    kept = injected_evaluations(solver, injection.steps)
    forwards, replays = each * (1 + guided), kept * guided
    plain = forward_flops(size, batch, image, text)
    replay = forward_flops(size, batch, image, text, injection)
    return Cost(
        forwards=forwards,
        flops=(forwards - replays) * plain + replays * replay,
        weight_bytes=size.parameters() * number_bytes,
        cache_bytes=kept * cache_bytes(size, batch, image, text, injection, number_bytes),
        activation_bytes=ACTIVATION_WIDTHS * batch * (image + text) * size.width * number_bytes,
    )

"""The size of a FLUX transformer, and the part of it that an injection touches, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from gmd_ray.config import TeacherConfig
from gmd_ray.teachers.flux.blocks import block_names, select_blocks
from gmd_ray.teachers.flux.families.family import FLUX1, FLUX2, Family, family_of
from gmd_ray.teachers.injection import injected_intervals

TIME_CHANNELS = 256
"""Sinusoidal features of timestep and guidance; diffusers fixes them in CombinedTimestepGuidanceTextProjEmbeddings, and
FLUX.2's config has the same number."""


@dataclass(frozen=True)
class FluxDimensions:
    """The dimensions of a FluxTransformer2DModel."""

    family: ClassVar[Family] = FLUX1

    double: int
    """Double blocks, with separate weights for text and image tokens."""
    single: int
    """Single blocks, with one set of weights for all tokens."""
    heads: int
    head_dim: int
    in_channels: int
    out_channels: int
    text_width: int
    pooled_width: int
    guidance: bool
    """True for models with an embedding of the distilled guidance."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FluxDimensions:
        """Read the content of `transformer/config.json`.

        Raises:
            KeyError: the config belongs to another model.
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
        """Channels d of a token inside the blocks."""
        return self.heads * self.head_dim

    @property
    def blocks(self) -> int:
        """Double and single blocks together."""
        return self.double + self.single

    def modulation_parameters(self) -> int:
        """Parameters of the layers that modulation tables replace: the embedders of time, guidance and pooled prompt,
        and the linear layers of all adaptive norms. Their output depends on time, guidance and the pooled prompt alone.
        """
        d = self.width
        # Each embedder is two linear layers with biases. The adaptive norms map d channels to `modulation_columns`.
        time = TIME_CHANNELS * d + d * d + 2 * d
        pooled = self.pooled_width * d + d * d + 2 * d
        return time * (2 if self.guidance else 1) + pooled + self.modulation_columns() * (d + 1)

    def modulation_products(self) -> int:
        """Multiply-adds of those layers for one forward pass: their weights without the biases."""
        d = self.width
        time, pooled = TIME_CHANNELS * d + d * d, self.pooled_width * d + d * d
        return time * (2 if self.guidance else 1) + pooled + self.modulation_columns() * d

    def modulation_columns(self) -> int:
        """Length of one row of the modulation tables.

        A double block has a norm for the image and one for the text, each with two shifts, scales and gates; a single
        block has one of each; the last norm has a shift and a scale.
        """
        return (12 * self.double + 3 * self.single + 2) * self.width

    def parameters(self) -> int:
        """All parameters of the transformer."""
        d = self.width
        # The ends: embeddings of latents and text, with biases, and the projection out.
        ends = (self.in_channels + self.text_width + 2) * d + (d + 1) * self.out_channels
        blocks = self.double_parameters() * self.double + self.single_parameters() * self.single
        return self.modulation_parameters() + ends + blocks

    def double_parameters(self) -> int:
        """Parameters of a double block without its modulation: q, k, v, out and MLP of two streams, and RMS scales."""
        d = self.width
        return 24 * d * d + 18 * d + 4 * self.head_dim

    def single_parameters(self) -> int:
        """Parameters of a single block without its modulation."""
        d = self.width
        return 12 * d * d + 8 * d + 2 * self.head_dim

    def block_products(self) -> int:
        """Multiply-adds of the linear layers of either kind of block, for one token: q, k, v, out (4) and MLP (8)."""
        return 12 * self.width**2

    def split_parameters(self) -> int:
        """The parameters that the ranks of a replica divide among themselves under tensor parallelism.

        They are the projections into and out of attention and MLP, without the biases that are added after a sum over
        the ranks.
        """
        d = self.width
        return self.double * (24 * d * d + 14 * d) + self.single * (12 * d * d + 7 * d)


@dataclass(frozen=True)
class Flux2Dimensions(FluxDimensions):
    """The dimensions of a Flux2Transformer2DModel, which has no biases and one modulation for all blocks of a kind."""

    family: ClassVar[Family] = FLUX2

    mlp: int = 0
    """Channels of a token inside the MLP, of which there are as many again for its gate."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Flux2Dimensions:
        """Read the content of `transformer/config.json`; raises as `FluxDimensions.from_config`."""
        size = FluxDimensions.from_config({**config, "pooled_projection_dim": 0})
        return cls(**vars(size), mlp=int(size.width * config.get("mlp_ratio", 3.0)))

    def modulation_parameters(self) -> int:
        """Parameters of the embedders of time and guidance, of the three shared layers and of the last norm."""
        return self.modulation_products()  # there are no biases

    def modulation_products(self) -> int:
        d = self.width
        return (TIME_CHANNELS * d + d * d) * (2 if self.guidance else 1) + self.modulation_columns() * d

    def modulation_columns(self) -> int:
        """Outputs of the shared layers: 6 for the images and 6 for the text of double blocks, 3 for single blocks; and
        2 of the last norm."""
        return 17 * self.width

    def parameters(self) -> int:
        d = self.width
        ends = (self.in_channels + self.text_width + self.out_channels) * d
        blocks = self.double_parameters() * self.double + self.single_parameters() * self.single
        return self.modulation_parameters() + ends + blocks

    def double_parameters(self) -> int:
        return 2 * self.block_products() + 4 * self.head_dim

    def single_parameters(self) -> int:
        return self.block_products() + 2 * self.head_dim

    def block_products(self) -> int:
        """Multiply-adds of the linear layers for one token: q, k, v, out (4 d^2) and the gated MLP (3 layers)."""
        return 4 * self.width**2 + 3 * self.mlp * self.width

    def split_parameters(self) -> int:
        return (2 * self.double + self.single) * self.block_products()


def dimensions_of(config: Mapping[str, Any]) -> FluxDimensions:
    """The dimensions of a transformer of whatever family, from its config.

    Raises:
        KeyError: the config belongs to another model.
    """
    kind = Flux2Dimensions if family_of(config) is FLUX2 else FluxDimensions
    return kind.from_config(config)


@dataclass(frozen=True)
class Injection:
    """The part of the reconstruction that takes keys and values from the inversion."""

    double: int
    """Double blocks with injection."""
    single: int
    """Single blocks with injection."""
    steps: int
    """The first n intervals of the reconstruction have injection."""
    keys: bool = True
    """Inject keys and values; False injects the values alone."""
    text: bool = True
    """Inject into all tokens; False injects into image tokens alone."""

    @classmethod
    def from_config(cls, teacher: TeacherConfig, size: FluxDimensions) -> Injection:
        """Apply `teacher.injection` to a model of that size.

        Raises:
            ConfigError: the settings name a block that the model does not have.
        """
        cfg = teacher.injection
        steps = injected_intervals(cfg, teacher.steps)
        if not steps:
            return NO_INJECTION
        blocks = select_blocks(block_names(size.double, size.single), cfg.blocks)
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
        """Double and single blocks with injection."""
        return self.double + self.single

    def kills_text(self, size: FluxDimensions) -> bool:
        """True if no image token can see the text any more. See docs/method.md, "Injection"."""
        return self.keys and self.text and self.blocks == size.blocks


NO_INJECTION = Injection(double=0, single=0, steps=0)


def image_tokens(height: int, width: int, multiple: int = 16) -> int:
    """Packed tokens of an image of that many pixels, padded to whole tokens.

    Args:
        multiple: side of a token in pixels.
    """
    return -(-height // multiple) * -(-width // multiple)

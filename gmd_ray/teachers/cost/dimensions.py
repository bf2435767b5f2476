"""The size of a FLUX transformer, and the part of it that an injection touches, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gmd_ray.config import TeacherConfig
from gmd_ray.teachers.flux.blocks import block_names, select_blocks
from gmd_ray.teachers.injection import injected_intervals

TIME_CHANNELS = 256
"""Sinusoidal features of timestep and guidance; diffusers fixes them in CombinedTimestepGuidanceTextProjEmbeddings."""


@dataclass(frozen=True)
class FluxDimensions:
    """The dimensions of a FluxTransformer2DModel."""

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
        double = 24 * d * d + 18 * d + 4 * self.head_dim  # two streams: q, k, v, out and MLP; RMS scales
        single = 12 * d * d + 8 * d + 2 * self.head_dim
        return self.modulation_parameters() + ends + double * self.double + single * self.single

    def split_parameters(self) -> int:
        """The parameters that the ranks of a replica divide among themselves under tensor parallelism.

        They are the projections into and out of attention and MLP, without the biases that are added after a sum over
        the ranks.
        """
        d = self.width
        return self.double * (24 * d * d + 14 * d) + self.single * (12 * d * d + 7 * d)


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

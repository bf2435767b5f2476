"""How large a FLUX transformer is and what of it an injection touches, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gmd_ray.config import TeacherConfig

TIME_CHANNELS = 256
"""Sinusoidal features of timestep and guidance; diffusers fixes them in CombinedTimestepGuidanceTextProjEmbeddings."""


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
        from gmd_ray.teachers.flux.attention import select_blocks

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


def image_tokens(height: int, width: int, multiple: int = 16) -> int:
    """Packed tokens of an image of that many pixels, padded to `multiple`, the side of a token in pixels."""
    return -(-height // multiple) * -(-width // multiple)

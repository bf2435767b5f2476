"""Facts about published teachers: licence with its source, configuration, and whether they are step-distilled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmd_ray.teachers.flux.families.family import FAMILIES as INJECTING

COMMERCIAL, NON_COMMERCIAL, UNKNOWN = "commercial", "non-commercial", "unknown"
"""Licence classes: the licence lets a company use the model and what it makes; it does not; nobody has said."""

FAMILIES = {
    "FluxTransformer2DModel": "FLUX.1",
    "Flux2Transformer2DModel": "FLUX.2",
    "ChromaTransformer2DModel": "Chroma",
    "UNet2DConditionModel": "Stable Diffusion",
}
"""Class of the network in its config.json -> family."""
SUPPORTED = ("FluxTransformer2DModel", "Flux2Transformer2DModel", "UNet2DConditionModel")
"""Classes that a teacher can be loaded from."""

FLUX1 = {
    "_class_name": "FluxTransformer2DModel", "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": True, "in_channels": 64, "joint_attention_dim": 4096, "num_attention_heads": 24,
    "num_layers": 19, "num_single_layers": 38, "patch_size": 1, "pooled_projection_dim": 768,
}  # fmt: skip
FLUX2 = {
    "_class_name": "Flux2Transformer2DModel", "attention_head_dim": 128, "axes_dims_rope": [32, 32, 32, 32],
    "guidance_embeds": False, "in_channels": 128, "mlp_ratio": 3.0, "patch_size": 1, "rope_theta": 2000,
    "timestep_guidance_channels": 256, "eps": 1e-6,
}  # fmt: skip
KLEIN_4B = {
    **FLUX2, "joint_attention_dim": 7680, "num_attention_heads": 24, "num_layers": 5, "num_single_layers": 20,
}  # fmt: skip
KLEIN_9B = {
    **FLUX2, "joint_attention_dim": 12288, "num_attention_heads": 32, "num_layers": 8, "num_single_layers": 24,
}  # fmt: skip
FLUX2_DEV = {
    **FLUX2, "joint_attention_dim": 15360, "num_attention_heads": 48, "num_layers": 8, "num_single_layers": 48,
    "guidance_embeds": True,
}  # fmt: skip
CHROMA = {
    "_class_name": "ChromaTransformer2DModel", "in_channels": 64, "num_layers": 19, "num_single_layers": 38,
    "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
    "axes_dims_rope": [16, 56, 56], "approximator_num_channels": 64, "approximator_hidden_dim": 5120,
    "approximator_layers": 5,
}  # fmt: skip
SD1 = {
    "_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768, "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
SD2 = {**SD1, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
SDXL = {
    "_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
FLUX1_CODEC = {
    "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False,
    "use_post_quant_conv": False,
}  # fmt: skip
FLUX2_CODEC = {
    "_class_name": "AutoencoderKLFlux2", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 32, "batch_norm_eps": 1e-4, "patch_size": [2, 2],
}  # fmt: skip
SD_CODEC = {**FLUX1_CODEC, "latent_channels": 4, "scaling_factor": 0.18215, "shift_factor": None,
            "use_quant_conv": True, "use_post_quant_conv": True}  # fmt: skip

BFL = "https://github.com/black-forest-labs/flux"
BFL2 = "https://github.com/black-forest-labs/flux2"
HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class KnownTeacher:
    """A published model that is a teacher, or might be taken for one."""

    hub_id: str
    licence: str
    """The licence by the name that its makers use."""
    kind: str
    """The licence class."""
    source: str
    """The page that names the licence."""
    network: Mapping[str, Any]
    """Published config.json of the transformer or U-Net, but for values without influence on size and cost."""
    codec: Mapping[str, Any]
    """The same of the autoencoder."""
    method: str = "inversion"
    """`teacher.method` that suits it."""
    step_distilled: bool = False
    """Trained to make an image in a few large steps; see `distilled.step_distilled`."""
    unfit: str = ""
    """The reason why it cannot be loaded although its class can; empty if there is none."""

    @property
    def name(self) -> str:
        """The hub id without its owner."""
        return self.hub_id.partition("/")[2]

    @property
    def family(self) -> str:
        return FAMILIES[self.network["_class_name"]]

    @property
    def why_not(self) -> str:
        """The reason why it cannot be a teacher; empty if it can."""
        kind = self.network["_class_name"]
        return f"{kind} is not supported" if kind not in SUPPORTED else self.unfit


_DEV_LICENCE = "FLUX.1 [dev] Non-Commercial License"
_DEV2_LICENCE = "FLUX Non-Commercial License"
_SDXL = "its U-Net takes a size and a pooled prompt (addition_embed_type=text_time), which ddim does not give it"

KNOWN = (
    KnownTeacher("black-forest-labs/FLUX.1-dev", _DEV_LICENCE, NON_COMMERCIAL,
                 f"{BFL}/blob/main/model_licenses/LICENSE-FLUX1-dev", FLUX1, FLUX1_CODEC),
    KnownTeacher("black-forest-labs/FLUX.1-Kontext-dev", _DEV_LICENCE, NON_COMMERCIAL,
                 f"{BFL}#models", FLUX1, FLUX1_CODEC, method="kontext"),
    KnownTeacher("black-forest-labs/FLUX.1-schnell", "apache-2.0", COMMERCIAL,
                 f"{BFL}/blob/main/model_licenses/LICENSE-FLUX1-schnell",
                 {**FLUX1, "guidance_embeds": False}, FLUX1_CODEC, step_distilled=True),
    KnownTeacher("ostris/OpenFLUX.1", "apache-2.0", COMMERCIAL, f"{HUB}ostris/OpenFLUX.1",
                 {**FLUX1, "guidance_embeds": False}, FLUX1_CODEC),
    KnownTeacher("black-forest-labs/FLUX.2-klein-base-4B", "apache-2.0", COMMERCIAL, f"{BFL2}#model-overview",
                 KLEIN_4B, FLUX2_CODEC),
    KnownTeacher("black-forest-labs/FLUX.2-klein-4B", "apache-2.0", COMMERCIAL, f"{BFL2}#model-overview",
                 KLEIN_4B, FLUX2_CODEC, step_distilled=True),
    KnownTeacher("black-forest-labs/FLUX.2-klein-base-9B", _DEV2_LICENCE, NON_COMMERCIAL, f"{BFL2}#model-overview",
                 KLEIN_9B, FLUX2_CODEC),
    KnownTeacher("black-forest-labs/FLUX.2-klein-9B", _DEV2_LICENCE, NON_COMMERCIAL, f"{BFL2}#model-overview",
                 KLEIN_9B, FLUX2_CODEC, step_distilled=True),
    KnownTeacher("black-forest-labs/FLUX.2-dev", _DEV2_LICENCE, NON_COMMERCIAL, f"{BFL2}#model-overview",
                 FLUX2_DEV, FLUX2_CODEC),
    KnownTeacher("lodestones/Chroma1-HD", "apache-2.0", COMMERCIAL, f"{HUB}lodestones/Chroma1-HD",
                 CHROMA, FLUX1_CODEC),
    KnownTeacher("stable-diffusion-v1-5/stable-diffusion-v1-5", "creativeml-openrail-m", COMMERCIAL,
                 f"{HUB}stable-diffusion-v1-5/stable-diffusion-v1-5", SD1, SD_CODEC, method="ddim"),
    KnownTeacher("stabilityai/stable-diffusion-2-1", "openrail++", COMMERCIAL,
                 f"{HUB}stabilityai/stable-diffusion-2-1", SD2, SD_CODEC, method="ddim"),
    KnownTeacher("stabilityai/stable-diffusion-xl-base-1.0", "openrail++", COMMERCIAL,
                 f"{HUB}stabilityai/stable-diffusion-xl-base-1.0", SDXL, SD_CODEC, method="ddim", unfit=_SDXL),
)  # fmt: skip


def known_teacher(path: str) -> KnownTeacher | None:
    """The published model that a hub id names; None for another id, or for a directory."""
    wanted = path.lower()
    return next((known for known in KNOWN if known.hub_id.lower() == wanted), None)


def named_teacher(path: Path) -> KnownTeacher | None:
    """The published model whose name a directory bears: as its own, or as that of a snapshot in the hub's cache."""
    for part in path.parts:  # models--owner--name/snapshots/revision
        if part.startswith("models--") and (found := known_teacher("/".join(part.split("--")[1:]))) is not None:
            return found
    return next((known for known in KNOWN if known.name.lower() == path.name.lower()), None)


def network_class(config: Mapping[str, Any]) -> str:
    """The class of diffusers that a network's config.json names, itself or by the class with injection."""
    name = str(config.get("_class_name"))
    return next((family.transformer for family in INJECTING if name == family.ours), name)


def layout(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """The features that tell FLUX transformers apart: class, depth, width, text and guidance embedding."""
    keys = ("num_layers", "num_single_layers", "num_attention_heads", "attention_head_dim", "joint_attention_dim")
    return (network_class(config), *(config.get(key) for key in keys), bool(config.get("guidance_embeds")))

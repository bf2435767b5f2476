"""The cost of an autoencoder, from its config alone: FLOPs, weights and activations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

CODEC_WIDTHS = 4
"""Live activations at the widest point of the decoder, in tensors of (pixels, channels of the second level)."""


def codec_factor(config: Mapping[str, Any]) -> int:
    """Pixels that one latent stands for, along a side."""
    return config["factor"] if "factor" in config else 2 ** (len(config["block_out_channels"]) - 1)


def codec_flops(config: Mapping[str, Any], height: int, width: int) -> int:
    """FLOPs of encoding and decoding one image; height and width in pixels are multiples of the factor."""
    return _run_on_meta(json.dumps(dict(config), sort_keys=True), height, width)[0] if _has_weights(config) else 0


def codec_parameters(config: Mapping[str, Any]) -> int:
    """Parameters of the autoencoder; 0 for a codec without weights."""
    side = 2 * codec_factor(config)
    return _run_on_meta(json.dumps(dict(config), sort_keys=True), side, side)[1] if _has_weights(config) else 0


def codec_activations(config: Mapping[str, Any], pixels: int, number_bytes: int = 2) -> int:
    """Bytes of the activations for one image, a rough figure: see CODEC_WIDTHS."""
    if not _has_weights(config):
        return 0
    channels = config.get("decoder_block_out_channels") or config["block_out_channels"]
    return CODEC_WIDTHS * pixels * max(channels[:2]) * number_bytes


def _has_weights(config: Mapping[str, Any]) -> bool:
    return config.get("_class_name") in ("AutoencoderKL", "AutoencoderKLFlux2")


@lru_cache(maxsize=64)
def _run_on_meta(config: str, height: int, width: int) -> tuple[int, int]:
    """(FLOPs, parameters), counted by running the real class without memory, on the meta device.

    Its layers are of many kinds, so counting is shorter than formulas, and slower: about a second.
    """
    import diffusers
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        vae = getattr(diffusers, json.loads(config)["_class_name"]).from_config(json.loads(config))
        vae.decode(vae.encode(torch.empty(1, 3, height, width)).latent_dist.mode())
    return counter.get_total_flops(), sum(p.numel() for p in vae.parameters())

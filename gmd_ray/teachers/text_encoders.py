"""Encoding prompts with a directory's own text encoders, on the CPU."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gmd_ray.errors import ModelError
from gmd_ray.teachers.directory import TABLE, has_unet, read_json
from gmd_ray.teachers.flux.families.family import FLUX2, family_of
from gmd_ray.teachers.flux.families.qwen3 import encode_qwen3
from gmd_ray.text import one_line

CLIP_TOKENS = 77
"""Tokens of every prompt that CLIP encodes."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """Text conditioning: `embeds` (T, D) and `pooled` (P,); P is 0 for models without a pooled prompt.

    Prompts are compared by identity, so that they can be keys of a dict.
    """

    embeds: torch.Tensor
    pooled: torch.Tensor


def check_encoders(path: Path, prompt: str) -> None:
    """Refuse a directory without text encoders.

    Raises:
        ModelError: a folder is missing; the message names it and `prompt`.
    """
    folder = _lacks(path)
    if folder is not None:
        raise ModelError(
            f"{path}: prompt {prompt!r} is not in {TABLE} and there is no {folder}/ to encode it with; use a "
            "prompt of the table, or a directory with its text encoders"
        )


def has_encoders(path: Path) -> bool:
    """True if the directory has all text encoders and tokenizers."""
    return _lacks(path) is None


def _lacks(path: Path) -> str | None:
    """The first missing folder, or None.

    A text encoder's folder counts if it has weights: a partial snapshot of a hub id has the config files of all.
    """
    for folder in ["text_encoder", "tokenizer"] + (["text_encoder_2", "tokenizer_2"] if _has_t5(path) else []):
        wanted = "*.safetensors" if folder.startswith("text_encoder") else "*"
        if next((path / folder).glob(wanted), None) is None:
            return folder
    return None


def _is_flux2(path: Path) -> bool:
    file = path / "transformer" / "config.json"
    return file.is_file() and family_of(read_json(file)) is FLUX2


def _has_t5(path: Path) -> bool:
    """True for FLUX.1, which has T5 beside CLIP; Stable Diffusion has CLIP alone, and FLUX.2 Qwen3."""
    return not has_unet(path) and not _is_flux2(path)


@torch.no_grad()
def encode(path: Path, prompts: Sequence[str], length: int) -> dict[str, Prompt]:
    """Embed each prompt in float32 as the model's own pipeline does, and free the encoders again.

    FLUX.1's T5-XXL takes 19 GB of memory while it runs, FLUX.2's Qwen3 13 GB.

    Args:
        length: tokens of FLUX's T5 or Qwen3; ignored for Stable Diffusion, whose CLIP always has `CLIP_TOKENS`.

    Returns:
        prompt -> `embeds` (T, D) and `pooled` (P,), on the CPU.

    Raises:
        ModelError: an encoder is missing or cannot be loaded.
    """
    check_encoders(path, prompts[0])
    if _is_flux2(path):
        embedded = encode_qwen3(path, prompts, length)
        gc.collect()
        return {prompt: Prompt(embeds, torch.zeros(0)) for prompt, embeds in embedded.items()}
    import diffusers

    unet = has_unet(path)
    kind = diffusers.StableDiffusionPipeline if unet else diffusers.FluxPipeline
    absent = ("unet", "safety_checker", "feature_extractor", "image_encoder") if unet else ("transformer",)
    try:
        pipe = kind.from_pretrained(
            path, vae=None, **dict.fromkeys(absent), torch_dtype=torch.float32, use_safetensors=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: cannot load the text encoders ({one_line(error)})") from error
    found = {}
    for prompt in prompts:
        if unet:
            embeds, _ = pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
            pooled = torch.zeros(1, 0)
        else:
            # T5's states are padded to the full length and the padding is attended to: FluxPipeline.encode_prompt
            # passes no mask. See docs/method.md, "Prompts".
            embeds, pooled, _ = pipe.encode_prompt(prompt, None, device="cpu", max_sequence_length=length)
        found[prompt] = Prompt(embeds[0].float(), pooled[0].float())
    del pipe
    gc.collect()
    return found

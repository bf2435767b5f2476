"""Prompts through a directory's own text encoders, on the CPU."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gmd_ray.errors import ModelError
from gmd_ray.teachers.directory import TABLE, has_unet

CLIP_TOKENS = 77
"""Length of every CLIP prompt."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """Text conditioning: `embeds` (T, D) and `pooled` (P,); P is 0 for models that take none. Equal if the same."""

    embeds: torch.Tensor
    pooled: torch.Tensor


def check_encoders(path: Path, prompt: str) -> None:
    """Refuse a directory that cannot encode a prompt.

    Raises:
        ModelError: naming what it lacks.
    """
    folder = _lacks(path)
    if folder is not None:
        raise ModelError(
            f"{path}: prompt {prompt!r} is not in {TABLE} and there is no {folder}/ to encode it with; use a "
            "prompt of the table, or a directory with its text encoders"
        )


def has_encoders(path: Path) -> bool:
    """Whether prompts can be encoded from the directory."""
    return _lacks(path) is None


def _lacks(path: Path) -> str | None:
    """The first folder that is not there. A hub's snapshot of other folders has their config files, without weights."""
    for folder in ["text_encoder", "tokenizer"] + ([] if has_unet(path) else ["text_encoder_2", "tokenizer_2"]):
        wanted = "*.safetensors" if folder.startswith("text_encoder") else "*"
        if next((path / folder).glob(wanted), None) is None:
            return folder
    return None


@torch.no_grad()
def encode(path: Path, prompts: Sequence[str], length: int) -> dict[str, Prompt]:
    """Embeddings of each prompt, as the model's own pipeline makes them, in float32; the encoders are freed again.

    FLUX's T5-XXL takes 19 GB of memory meanwhile.

    Args:
        length: tokens of FLUX's T5; Stable Diffusion's CLIP has `CLIP_TOKENS`.

    Raises:
        ModelError: encoders that are absent or cannot be loaded.
    """
    check_encoders(path, prompts[0])
    import diffusers

    unet = has_unet(path)
    kind = diffusers.StableDiffusionPipeline if unet else diffusers.FluxPipeline
    absent = ("unet", "safety_checker", "feature_extractor", "image_encoder") if unet else ("transformer",)
    try:
        pipe = kind.from_pretrained(
            path, vae=None, **dict.fromkeys(absent), torch_dtype=torch.float32, use_safetensors=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: cannot load the text encoders ({str(error).splitlines()[0]})") from error
    found = {}
    for prompt in prompts:
        if unet:
            embeds, _ = pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
            pooled = torch.zeros(1, 0)
        else:
            # FLUX was trained with padded T5 states and no mask (teacher.md 1.1), which encode_prompt reproduces.
            embeds, pooled, _ = pipe.encode_prompt(prompt, None, device="cpu", max_sequence_length=length)
        found[prompt] = Prompt(embeds[0].float(), pooled[0].float())
    del pipe
    gc.collect()
    return found

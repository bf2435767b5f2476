"""Prompt embeddings of a FLUX directory: from a file beside the weights, else from its own text encoders, once."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path

import torch

from gmd_ray.errors import ModelError
from gmd_ray.teachers.projection import Prompt

TABLE = "prompt_embeddings.safetensors"
"""Keys `<prompt>.prompt_embeds` (T, D) and `<prompt>.pooled` (P,)."""


def load_prompts(path: Path, prompts: Iterable[str], max_sequence_length: int) -> dict[str, Prompt]:
    """Embeddings of each prompt; text encoders are loaded on the CPU only where the table lacks one, and freed.

    Raises:
        ModelError: where a prompt is neither in the table nor can be encoded.
    """
    wanted = sorted(set(prompts))
    found: dict[str, Prompt] = {}
    table = path / TABLE
    if table.is_file():
        from safetensors.torch import load_file

        tensors = load_file(table)
        for prompt in wanted:
            if f"{prompt}.pooled" in tensors:
                found[prompt] = Prompt(tensors[f"{prompt}.prompt_embeds"], tensors[f"{prompt}.pooled"])
    missing = [prompt for prompt in wanted if prompt not in found]
    if missing:
        found.update(_encode(path, missing, max_sequence_length))
    return found


@torch.no_grad()
def _encode(path: Path, prompts: list[str], max_sequence_length: int) -> dict[str, Prompt]:
    for folder in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        if not (path / folder).is_dir():
            raise ModelError(
                f"{path}: prompt {prompts[0]!r} is not in {TABLE} and there is no {folder}/ to encode it with; "
                "use a prompt of the table, or a directory with its text encoders"
            )
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(path, transformer=None, vae=None, use_safetensors=True)
    found = {}
    for prompt in prompts:
        # FLUX was trained with padded T5 states and no mask (teacher.md 1.1), which encode_prompt reproduces.
        embeds, pooled, _ = pipe.encode_prompt(prompt, None, device="cpu", max_sequence_length=max_sequence_length)
        found[prompt] = Prompt(embeds[0].float(), pooled[0].float())
    del pipe
    gc.collect()
    return found

"""Encoding prompts with Qwen3, the text encoder of FLUX.2 [klein], on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from gmd_ray.errors import ModelError
from gmd_ray.text import one_line

LAYERS = (9, 18, 27)
"""The layers whose hidden states make up an embedding, side by side; 0 is the embedding of the tokens."""


@torch.no_grad()
def encode_qwen3(path: Path, prompts: Sequence[str], length: int) -> dict[str, torch.Tensor]:
    """Embed each prompt in float32 as Flux2KleinPipeline does: a chat message of a user, padded to `length` tokens.

    Only the layers up to the last one that counts are loaded: 12.9 GB of Qwen3-4B's 16.1 GB.

    Returns:
        prompt -> (length, 3 * hidden size), on the CPU.

    Raises:
        ModelError: the text encoder is another model or cannot be loaded.
    """
    from diffusers import Flux2KleinPipeline
    from transformers import AutoConfig, AutoTokenizer, Qwen3Model

    folder = path / "text_encoder"
    try:
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != "qwen3" or config.num_hidden_layers < LAYERS[-1]:
            raise ModelError(
                f"{folder}: {config.model_type} with {config.num_hidden_layers} layers is not supported; FLUX.2 "
                f"[klein] has Qwen3 with {LAYERS[-1]} or more. For others give embeddings in teacher.prompt_embeddings"
            )
        # One layer more than is read, since the last hidden state of a model passes its final norm.
        config.num_hidden_layers = min(config.num_hidden_layers, LAYERS[-1] + 1)
        config.layer_types = config.layer_types[: config.num_hidden_layers]
        model = Qwen3Model.from_pretrained(folder, config=config, dtype=torch.float32, use_safetensors=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(path / "tokenizer")
        # The DiT attends to the padding too, whose states depend on the prompt: no mask is handed on.
        return {
            prompt: Flux2KleinPipeline._get_qwen3_prompt_embeds(
                model, tokenizer, prompt, max_sequence_length=length, hidden_states_layers=LAYERS
            )[0]
            for prompt in prompts
        }
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: cannot load the text encoder ({one_line(error)})") from error

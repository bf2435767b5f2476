"""Tiny text encoders with their tokenizers, in the layouts of FLUX.1, FLUX.2 and Stable Diffusion."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch


def write_sd_text_encoder(path: Path, text_dim: int = 24) -> None:
    """Add tokenizer/, text_encoder/ and model_index.json of Stable Diffusion."""
    write_text_encoders(path, pooled_dim=text_dim)
    for folder in ("text_encoder_2", "tokenizer_2"):
        shutil.rmtree(path / folder)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.0",
        "requires_safety_checker": False,
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (path / "model_index.json").write_text(json.dumps(index))


def write_text_encoders(path: Path, text_dim: int = 24, pooled_dim: int = 16) -> None:
    """Add tokenizer/, tokenizer_2/, text_encoder/, text_encoder_2/ and model_index.json."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

    folder = path / "tokenizer"
    folder.mkdir()
    letters = ["a", "b", "a</w>", "b</w>", "ab</w>", "ba</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(letters)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\nb a</w>\n")
    clip_tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77, pad_token="<|endoftext|>")
    clip_tokenizer.save_pretrained(folder)

    unigram = Tokenizer(
        models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("a", -1.0), ("b", -1.0), (" ", -2.0)], 2)
    )
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    T5TokenizerFast(
        tokenizer_object=unigram, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_ids=0
    ).save_pretrained(path / "tokenizer_2")

    torch.manual_seed(0)
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(letters), hidden_size=pooled_dim, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, bos_token_id=6, eos_token_id=7, pad_token_id=7,
        )
    ).save_pretrained(path / "text_encoder")  # fmt: skip
    T5EncoderModel(
        T5Config(vocab_size=6, d_model=text_dim, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ).save_pretrained(path / "text_encoder_2")
    (path / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "FluxPipeline",
                "_diffusers_version": "0.42.0",
                "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "text_encoder_2": ["transformers", "T5EncoderModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"],
                "tokenizer_2": ["transformers", "T5TokenizerFast"],
                "transformer": ["diffusers", "FluxTransformer2DModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            }
        )
    )


def write_qwen3(path: Path, text_dim: int = 24, layers: int = 29) -> None:
    """Add tokenizer/ and text_encoder/ of FLUX.2 [klein]: as deep as Qwen3 must be, and 1/3 of `text_dim` wide."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *special]
    tokenizer = Qwen2TokenizerFast(
        vocab={word: i for i, word in enumerate(words)}, merges=[], pad_token=special[0], eos_token=special[2],
        unk_token=special[0], additional_special_tokens=special[1:2],
    )  # fmt: skip
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not enable_thinking %}<>\n\n{% endif %}{% endif %}"
    )
    tokenizer.save_pretrained(path / "tokenizer")
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words), hidden_size=text_dim // 3, intermediate_size=16, num_hidden_layers=layers,
            num_attention_heads=2, num_key_value_heads=1, head_dim=4, initializer_range=0.3,
        )
    )  # fmt: skip
    model.save_pretrained(path / "text_encoder")

"""The part of an injecting transformer that all families share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers import ModelMixin
from diffusers.models.attention import AttentionModuleMixin
from torch.func import functional_call

from gmd_ray.teachers.flux.attention import Entry, InjectingAttention, Tokens
from gmd_ray.teachers.flux.blocks import block_names

if TYPE_CHECKING:
    from gmd_ray.teachers.text_encoders import Prompt


class Constants(NamedTuple):
    """Inputs of a forward pass that depend on the prompt and the size of the image alone."""

    text: torch.Tensor
    """(T, inner_dim) text tokens as the first block takes them; no rows where no image token attends to the text."""
    cos: torch.Tensor
    """(T + S, head_dim) float32: RoPE's cosines of all tokens, text first."""
    sin: torch.Tensor
    """Its sines."""


class InjectingModel(ModelMixin):
    """A transformer of double and single blocks that accepts and returns keys and values of its blocks.

    It comes first among the bases of a family's class, before the class of diffusers that has the weights.
    """

    ranks: int = 1
    """Processes that share the model. Each has 1 / ranks of the heads, and of what `kv_in` and `kv_out` hold."""
    shares_tokens: bool = False
    """True if each rank also has 1 / ranks of the tokens outside attention."""

    def use_injecting_attention(self, processor: InjectingAttention | None = None) -> None:
        """Install one processor in all blocks; call it once after loading."""
        self.attention = processor = processor or InjectingAttention()
        for name, module in self.named_modules():
            if isinstance(module, AttentionModuleMixin) and name.startswith(
                ("transformer_blocks", "single_transformer")
            ):
                module.set_processor(processor)

    def block_names(self) -> list[str]:
        """`transformer_blocks.0` ... `single_transformer_blocks.0` ..., in the order of the forward pass."""
        return block_names(len(self.transformer_blocks), len(self.single_transformer_blocks))

    def conditioning(
        self, prompt: Prompt, t: float, guidance: float | None, batch: int, dtype: torch.dtype, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """The arguments of `forward` through which time, guidance and pooled prompt enter the adaptive norms.

        Args:
            t: noise level in [0, 1].
            guidance: distilled guidance, None for models without it, for which it is left out.
        """
        raise NotImplementedError

    def image_ids(self, h: int, w: int, device: torch.device | None = None) -> torch.Tensor:
        """RoPE positions (h/2 * w/2, axes) of the packed latents of height h and width w."""
        raise NotImplementedError

    def text_ids(self, count: int, device: torch.device | None = None) -> torch.Tensor:
        """RoPE positions (count, axes) of the tokens of a prompt."""
        raise NotImplementedError

    def constants(self, embeds: torch.Tensor, img_ids: torch.Tensor) -> Constants:
        """Embed a prompt and the positions, which all forwards of a projection share.

        Args:
            embeds: (T, joint_attention_dim) text embeddings.
            img_ids: (S, axes) positions of the image tokens.
        """
        # Offloaded weights are on the host between forwards; those that are here are not copied.
        weights = {name: p.to(img_ids.device) for name, p in self.context_embedder.named_parameters()}
        text = functional_call(self.context_embedder, weights, (embeds[None],))[0]
        txt_ids = self.text_ids(embeds.shape[0], img_ids.device)
        return Constants(text, *self.pos_embed(torch.cat((txt_ids, img_ids), dim=0)))

    def tokens_here(self, x: torch.Tensor) -> torch.Tensor:
        """(B, tokens, dim) -> this process's tokens; a single process has all of them."""
        return x

    def all_tokens(self, x: torch.Tensor, count: int) -> torch.Tensor:
        """The inverse of `tokens_here`; `count` tokens over all ranks."""
        return x

    def input_kept(self, text: int, image: int) -> tuple[int, int]:
        """(tokens, channels) that this process keeps of an attention's input with that many text and image tokens."""
        return text + image, self.inner_dim // self.ranks

    def empty_entry(
        self, latents: torch.Tensor, text: int, dtype: torch.dtype, *, keys: bool = True, as_input: bool = False
    ) -> Entry:
        """Uninitialised storage for one block's entry of a bank.

        Args:
            latents: (B, S, D) whose projection fills it.
            text: number of text tokens whose keys and values are kept.
            keys: keep keys and values; False keeps values alone.
            as_input: keep the attention's input (B, tokens, dim) in the place of keys and values, half the bytes.
        """
        batch, image = latents.shape[:2]
        heads = (self.config.num_attention_heads // self.ranks, self.config.attention_head_dim)
        # Values alone are as small as the input already and need no projection at replay, so they are kept as they are.
        if as_input and keys:
            return torch.empty((batch, *self.input_kept(text, image)), dtype=dtype, device=latents.device)
        value = torch.empty((batch, text + image, *heads), dtype=dtype, device=latents.device)
        return (torch.empty_like(value) if keys else None, value)

    def _opening(
        self,
        latents: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        img_ids: torch.Tensor | None,
        txt_ids: torch.Tensor | None,
        constants: Constants | None,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor], Tokens]:
        """Prepare the inputs of the first block: (B, S, dim) image, (B, T, dim) text, RoPE tables and token counts.

        Text and tables are the constants, or else made of the other arguments.
        """
        image = self.x_embedder(self.tokens_here(latents))
        if constants is not None:
            # Dense, since other strides would be another graph of the first block where blocks are compiled.
            text = constants.text.expand(len(latents), -1, -1).contiguous()
            rope = (constants.cos, constants.sin)
            tokens = Tokens(text.shape[1], len(constants.cos) - latents.shape[1], latents.shape[1])
            return image, self.tokens_here(text), rope, tokens
        assert encoder_hidden_states is not None
        assert img_ids is not None
        assert txt_ids is not None
        tokens = Tokens(encoder_hidden_states.shape[1], txt_ids.shape[0], latents.shape[1])
        rope = self.pos_embed(torch.cat((txt_ids, img_ids), dim=0))
        return image, self.context_embedder(self.tokens_here(encoder_hidden_states)), rope, tokens

    def _routes(
        self,
        name: str,
        tokens: Tokens,
        kv_in: Mapping[str, Entry] | None,
        kv_out: Mapping[str, Entry] | None,
        kv_from: int,
    ) -> dict[str, Any]:
        """The arguments of `InjectingAttention` for one block, without those that have no part in it.

        A compiled block has one graph for each set of arguments: plain, capture and replay.
        """
        routes: dict[str, Any] = {"tokens": tokens} if self.shares_tokens else {}
        if kv_in is not None and name in kv_in:
            routes["kv_in"] = kv_in[name]
        if kv_out is not None and name in kv_out:
            routes["kv_out"] = kv_out[name]
        if "kv_in" in routes or "kv_out" in routes:
            routes["kv_from"] = kv_from
        return routes

    def _blocks(self) -> list[torch.nn.Module]:
        return [*self.transformer_blocks, *self.single_transformer_blocks]

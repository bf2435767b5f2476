"""Attention whose keys and values can be copied out of a block and put back into it, for every family of FLUX.

The attention processor has no state and is shared by all blocks. Keys and values travel as call arguments, so one
compiled block serves every step (docs/decisions.md, "Memory and cost"). Keys are stored after RoPE, since positions are
the same in both passes (docs/method.md, "Injection").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import nn

from gmd_ray.teachers.acceleration.fused import joined_norm_rope
from gmd_ray.teachers.flux.joining import concatenated, join, rotate, with_input

KV = tuple[torch.Tensor | None, torch.Tensor]
"""Keys and values of one block, each (B, tokens, heads, head_dim); keys are None where values alone are injected."""

Entry = KV | torch.Tensor
"""The cache of one block: its keys and values, or the attention's input (B, tokens, dim) with the text first. Keys
and values are projected anew from an input, which takes half the bytes and the work of a plain pass's projections."""


class Tokens(NamedTuple):
    """Numbers of tokens over all ranks; they matter only where ranks divide the sequence among themselves."""

    query_text: int = 0
    """Text tokens with queries: 0 if no image token attends to text."""
    text: int = 0
    """Text tokens with keys and values."""
    image: int = 0


UNSHARED = Tokens()

Projection = Callable[[torch.Tensor], torch.Tensor]


class InjectingAttention(FluxAttnProcessor):
    """FluxAttnProcessor that can copy a block's keys and values out, or use given ones in the place of its own.

    With S image and T text tokens, the sequence is [text, image]. A double block gives the processor both streams, a
    single block the whole sequence as `hidden_states`.
    """

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        kv_in: Entry | None = None,
        kv_out: Entry | None = None,
        kv_from: int = 0,
        tokens: Tokens = UNSHARED,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attention of one block.

        Args:
            hidden_states: (B, S, dim) of a double block, (B, T + S, dim) of a single one.
            encoder_hidden_states: (B, T, dim) of a double block, None of a single one.
            image_rotary_emb: RoPE tables for the keys, (T + S, head_dim) each. Where dead text is left out, there are
                fewer queries than keys, and they take the last rows.
            kv_in: keys and values, or an input to project them from, that replace the block's own; given keys and
                values are not projected.
            kv_out: buffers that receive the block's own.
            kv_from: the first token that is copied or replaced: 0 for all, T for image tokens alone.
            tokens: needed where ranks share the sequence.

        Returns:
            (image, text) of the shapes of the two inputs, or one tensor (B, T + S, dim) of a single block.
        """

        def heads(x: torch.Tensor) -> torch.Tensor:
            """(B, tokens, dim) -> (B, tokens, heads, head_dim)."""
            return x.unflatten(-1, (-1, attn.head_dim))

        image, text = hidden_states, encoder_hidden_states
        text_here = self.here(kv_from)
        # A cache of inputs keeps [text, image] from token kv_from on, as it is before any projection.
        if isinstance(kv_out, torch.Tensor):
            kv_out.copy_(self.share((image if text is None else torch.cat([text, image], dim=1))[:, text_here:]))

        # Queries are always the block's own: (B, queries, heads, head_dim), text first. RoPE tables begin with the
        # text, so queries without text take the rows from the end.
        queries = [(heads(attn.to_q(image)), attn.norm_q)]
        if text is not None:
            queries.insert(0, (heads(attn.add_q_proj(text)), attn.norm_added_q))
        query = self.positioned(queries, image_rotary_emb, tokens.query_text, tokens.image, from_end=True)
        assert query is not None
        del queries  # the projections before the norm, as large as what they became

        # Given keys and values are used as they are; a given input takes the place of the block's own, so that the
        # projections below make the other pass's keys and values from it.
        given_key, given_value = kv_in if isinstance(kv_in, tuple) else (None, None)
        if isinstance(kv_in, torch.Tensor):
            image, text = with_input(image, text, self.unshare(kv_in), text_here)

        def own(of_image: Projection, of_text: Projection, given: torch.Tensor | None) -> list[torch.Tensor]:
            """The keys or values that are not given, text first, each (B, tokens, heads, head_dim)."""
            if given is not None and not kv_from:
                return []
            if given is not None:
                # Image tokens are given: the text's alone are projected, from the first tokens of a single block.
                return [heads(of_text(text) if text is not None else of_image(image[:, :text_here]))]
            return [heads(of_image(image))] if text is None else [heads(of_text(text)), heads(of_image(image))]

        def counts(given: torch.Tensor | None) -> tuple[int, int]:
            """Tokens of the text and the image in `own`, over all ranks."""
            return (tokens.text, tokens.image) if given is None else (kv_from, 0)

        keys = own(attn.to_k, lambda x: attn.add_k_proj(x), given_key)  # a single block has no add_k_proj
        norms = [attn.norm_k] if text is None else [attn.norm_added_k, attn.norm_k]
        key = self.positioned(list(zip(keys, norms, strict=False)), image_rotary_emb, *counts(given_key))
        del keys
        values = own(attn.to_v, lambda x: attn.add_v_proj(x), given_value)
        value = self.collect(concatenated(values), *counts(given_value)) if values else None

        # Copy out after the rotation: positions are the same at replay, which then needs none.
        if isinstance(kv_out, tuple):
            assert key is not None, "a pass that takes keys leaves none"
            assert value is not None, "a pass that takes values leaves none"
            if kv_out[0] is not None:
                kv_out[0].copy_(key[:, kv_from:])
            kv_out[1].copy_(value[:, kv_from:])
        # [own text, given image], or the one of them that there is: (B, T + S, heads, head_dim).
        key, value = join(key, given_key), join(value, given_value)

        out = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        out = self.hand_back(out, tokens.query_text, tokens.image).flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return out
        text, image = out.split_with_sizes([encoder_hidden_states.shape[1], hidden_states.shape[1]], dim=1)
        return attn.to_out[1](attn.to_out[0](image.contiguous())), attn.to_add_out(text.contiguous())

    fused: bool = False
    """Norm and rotation in one kernel (`acceleration.fused`), in a process that shares nothing."""

    def positioned(
        self,
        parts: list[tuple[torch.Tensor, nn.RMSNorm]],
        rope: tuple[torch.Tensor, torch.Tensor] | None,
        text: int,
        image: int,
        *,
        from_end: bool = False,
    ) -> torch.Tensor | None:
        """Normalise queries or keys, each part by its norm, join them and rotate them by their positions.

        `collect` exchanges tokens for heads before the rotation where ranks share the sequence.

        Args:
            parts: (B, tokens, heads, head_dim) each, and the norm of its heads; text first.
            rope: tables of all tokens, (T + S, head_dim) each.
            text, image: tokens of the parts over all ranks.
            from_end: take the last rows of the tables instead of the first.

        Returns:
            (B, all tokens, heads, head_dim), or None without parts.
        """
        if not parts:
            return None
        if self.fused and rope is not None:
            count = sum(x.shape[1] for x, _ in parts)
            first = rope[0].shape[0] - count if from_end else 0
            return joined_norm_rope(parts, (rope[0][first : first + count], rope[1][first : first + count]))
        x = self.collect(concatenated([norm(x) for x, norm in parts]), text, image)
        if rope is None:
            return x
        return rotate(x, rope, first=rope[0].shape[0] - x.shape[1] if from_end else 0)

    # The methods below do nothing in a single process. Ranks that share a model override them: see tensor_parallel.py
    # and ulysses.py.

    def here(self, text: int) -> int:
        """The number of text tokens that this process has, of that many over all ranks."""
        return text

    def collect(self, x: torch.Tensor, text: int, image: int) -> torch.Tensor:
        """Exchange tokens for heads: this process's tokens with all heads -> all tokens with this process's heads.

        Args:
            x: (B, tokens, heads, head_dim), text first.
            text, image: tokens over all ranks.
        """
        return x

    def hand_back(self, x: torch.Tensor, text: int, image: int) -> torch.Tensor:
        """The inverse of `collect`."""
        return x

    def share(self, x: torch.Tensor) -> torch.Tensor:
        """The part of an attention's input (B, tokens, dim) that this process keeps."""
        return x

    def unshare(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `share`: gather the input from all ranks."""
        return x

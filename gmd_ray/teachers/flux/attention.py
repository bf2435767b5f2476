"""FLUX with attention keys and values going in and out of its blocks (teacher.md 2.2).

The processor is stateless and shared by all blocks; keys and values travel as call arguments, so one compiled block
serves every step. Keys are stored after RoPE: positions are the same in both passes, and replay saves the rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor

from gmd_ray.errors import ConfigError, nearest

KV = tuple[torch.Tensor | None, torch.Tensor]
"""Keys and values of one block, each (B, tokens, heads, head_dim); None for keys that are not injected."""

Entry = KV | torch.Tensor
"""What travels of one block: its keys and values, or the attention's input (B, tokens, dim), text first, from which
both are projected anew: half the bytes, and no more work than the projections of a plain pass (teacher.md 3)."""


class Tokens(NamedTuple):
    """Tokens over all ranks, where these share out the sequence; of no consequence elsewhere."""

    query_text: int = 0
    """0 where the text is dead."""
    text: int = 0
    image: int = 0


UNSHARED = Tokens()

Projection = Callable[[torch.Tensor], torch.Tensor]

LATE_SINGLE = 20  # RF-Solver injects into single blocks 20 and up


class InjectingAttention(FluxAttnProcessor):
    """FluxAttnProcessor that can copy a block's keys and values out, or take them from outside.

    `kv_from` is the first token that is copied or replaced: 0 for all tokens, the text length for image tokens alone.
    Keys and values that are taken from outside are not projected. `image_rotary_emb` covers the keys; the queries may
    be fewer, its last ones, where text is left out.
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
        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (-1, attn.head_dim))

        image, text = hidden_states, encoder_hidden_states
        text_here = self.here(kv_from)
        if isinstance(kv_out, torch.Tensor):
            kv_out.copy_(self.share((image if text is None else torch.cat([text, image], dim=1))[:, text_here:]))

        query = attn.norm_q(heads(attn.to_q(image)))
        if text is not None:
            query = torch.cat([attn.norm_added_q(heads(attn.add_q_proj(text))), query], dim=1)
        query = self.collect(query, tokens.query_text, tokens.image)

        given_key, given_value = kv_in if isinstance(kv_in, tuple) else (None, None)
        if isinstance(kv_in, torch.Tensor):
            image, text = _with_input(image, text, self.unshare(kv_in), text_here)

        def own(of_image: Projection, of_text: Projection, given: torch.Tensor | None) -> torch.Tensor | None:
            """Keys or values as far as they are not given; None where all are."""
            if given is not None and not kv_from:
                return None
            if given is not None:
                rest = of_text(text) if text is not None else of_image(image[:, :text_here])
                return self.collect(rest, kv_from, 0)
            every = of_image(image) if text is None else torch.cat([of_text(text), of_image(image)], dim=1)
            return self.collect(every, tokens.text, tokens.image)

        key = own(
            lambda x: attn.norm_k(heads(attn.to_k(x))),
            lambda x: attn.norm_added_k(heads(attn.add_k_proj(x))),
            given_key,
        )
        value = own(lambda x: heads(attn.to_v(x)), lambda x: heads(attn.add_v_proj(x)), given_value)
        if image_rotary_emb is not None:
            query = _rotate(query, image_rotary_emb, first=image_rotary_emb[0].shape[0] - query.shape[1])
            key = None if key is None else _rotate(key, image_rotary_emb)

        if isinstance(kv_out, tuple):
            assert key is not None, "a pass that takes keys leaves none"
            assert value is not None, "a pass that takes values leaves none"
            if kv_out[0] is not None:
                kv_out[0].copy_(key[:, kv_from:])
            kv_out[1].copy_(value[:, kv_from:])
        key, value = _join(key, given_key), _join(value, given_value)

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

    # What ranks that share a model put in the place of the rest; see parallel.py and ulysses.py.

    def here(self, text: int) -> int:
        """How many of that many text tokens this process has."""
        return text

    def collect(self, x: torch.Tensor, text: int, image: int) -> torch.Tensor:
        """This process's tokens, text first, of all heads it has weights of -> all tokens of the heads it attends."""
        return x

    def hand_back(self, x: torch.Tensor, text: int, image: int) -> torch.Tensor:
        """The inverse of `collect`."""
        return x

    def share(self, x: torch.Tensor) -> torch.Tensor:
        """What this process keeps of an attention's input (B, tokens, dim); all, unless ranks share the model."""
        return x

    def unshare(self, x: torch.Tensor) -> torch.Tensor:
        """The whole input again."""
        return x


def _rotate(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], first: int = 0) -> torch.Tensor:
    """(B, tokens, heads, head_dim) at the positions from `first` on."""
    cos, sin = (table[first : first + x.shape[1]] for table in rope)
    return apply_rotary_emb(x, (cos, sin), sequence_dim=1)


def _join(own: torch.Tensor | None, given: torch.Tensor | None) -> torch.Tensor | None:
    """The model's own tokens, then the given ones."""
    return own if given is None else given if own is None else torch.cat([own, given], dim=1)


def _with_input(
    image: torch.Tensor, text: torch.Tensor | None, given: torch.Tensor, kv_from: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What keys and values are projected from where another pass's attention input (B, tokens, dim) is given."""
    if text is None:
        return (torch.cat([image[:, :kv_from], given], dim=1) if kv_from else given), None
    if kv_from:
        return given, text
    given_text, given_image = given.split_with_sizes([given.shape[1] - image.shape[1], image.shape[1]], dim=1)
    return given_image, given_text


class InjectingFlux(FluxTransformer2DModel):
    """FluxTransformer2DModel whose forward takes and gives keys and values per block.

    The plain forward (no `kv_in`, no `kv_out`) equals the stock model's bit for bit.
    """

    ranks: int = 1
    """Processes that share the model: each has 1 / ranks of the heads, and of what `kv_in` and `kv_out` hold."""
    shares_tokens: bool = False
    """Whether each rank also has 1 / ranks of the tokens outside attention."""

    def use_injecting_attention(self, processor: InjectingAttention | None = None) -> None:
        """Install one shared processor; call once after loading."""
        processor = processor or InjectingAttention()
        for name, module in self.named_modules():
            if isinstance(module, FluxAttention) and name.startswith(("transformer_blocks", "single_transformer")):
                module.set_processor(processor)

    def block_names(self) -> list[str]:
        """`transformer_blocks.0` ... `single_transformer_blocks.0` ..., in the order of the forward pass."""
        double = [f"transformer_blocks.{i}" for i in range(len(self.transformer_blocks))]
        return double + [f"single_transformer_blocks.{i}" for i in range(len(self.single_transformer_blocks))]

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor | None,
        timestep: torch.Tensor | None,
        img_ids: torch.Tensor,
        txt_ids: torch.Tensor,
        guidance: torch.Tensor | None = None,
        modulation: Mapping[str, torch.Tensor] | None = None,
        kv_in: Mapping[str, Entry] | None = None,
        kv_out: Mapping[str, Entry] | None = None,
        kv_from: int = 0,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Velocity of packed latents.

        Args:
            hidden_states: (B, S, in_channels) packed latents.
            encoder_hidden_states: (B, T, joint_attention_dim) text embeddings; (B, 0, ...) where the text is dead, that
                is where `kv_in` holds the keys and values of all tokens for every block.
            pooled_projections: (B, pooled_projection_dim).
            timestep: (B,) in [0, 1]; 1 is noise.
            img_ids, txt_ids: (S, 3) and (T, 3) RoPE positions.
            guidance: (B,) distilled guidance scale, for models that embed one.
            modulation: rows of the adaptive norms by block name, see `modulation.ModulationTables`; pooled prompt, time
                and guidance are in them, and are None.
            kv_in: entries by block name that replace the block's own keys and values, from token `kv_from` on.
            kv_out: buffers by block name that receive the block's own, from token `kv_from` on.
        """
        tokens = Tokens(encoder_hidden_states.shape[1], txt_ids.shape[0], hidden_states.shape[1])
        x = self.x_embedder(self.tokens_here(hidden_states))
        if modulation is None:
            assert timestep is not None
            t = timestep.to(x.dtype) * 1000
            scale = () if guidance is None else (guidance.to(x.dtype) * 1000,)
            temb = self.time_text_embed(t, *scale, pooled_projections)
        text = self.context_embedder(self.tokens_here(encoder_hidden_states))
        rope = self.pos_embed(torch.cat((txt_ids, img_ids), dim=0))
        for name, block in zip(self.block_names(), self._blocks(), strict=True):
            routes: dict[str, Any] = {"tokens": tokens} if self.shares_tokens else {}
            if kv_in is not None and name in kv_in:
                routes["kv_in"] = kv_in[name]
            if kv_out is not None and name in kv_out:
                routes["kv_out"] = kv_out[name]
            if "kv_in" in routes or "kv_out" in routes:
                routes["kv_from"] = kv_from
            text, x = block(
                hidden_states=x,
                encoder_hidden_states=text,
                temb=temb if modulation is None else modulation[name],
                image_rotary_emb=rope,
                joint_attention_kwargs=routes,
            )
        last = temb if modulation is None else modulation["norm_out"]
        out = self.all_tokens(self.proj_out(self.norm_out(x, last)), tokens.image)
        return Transformer2DModelOutput(sample=out) if return_dict else (out,)

    def tokens_here(self, x: torch.Tensor) -> torch.Tensor:
        """(B, tokens, dim) -> this process's tokens of it; all, unless ranks share them."""
        return x

    def all_tokens(self, x: torch.Tensor, count: int) -> torch.Tensor:
        """The inverse of `tokens_here` for `count` tokens."""
        return x

    def input_kept(self, text: int, image: int) -> tuple[int, int]:
        """(tokens, channels) of what this process keeps of an attention's input of that many tokens."""
        return text + image, self.inner_dim // self.ranks

    def _blocks(self) -> list[torch.nn.Module]:
        return [*self.transformer_blocks, *self.single_transformer_blocks]


def select_blocks(names: Sequence[str], spec: str | Sequence[str]) -> list[str]:
    """The blocks that `teacher.injection.blocks` names.

    Args:
        names: all block names of the model.
        spec: all, double, single, late_single (single blocks 20 and up), or a list of names.

    Raises:
        ConfigError: for an unknown name, or `late_single` on a model too shallow to have any.
    """
    single = [n for n in names if n.startswith("single_")]
    groups = {
        "all": list(names),
        "double": [n for n in names if not n.startswith("single_")],
        "single": single,
        "late_single": single[LATE_SINGLE:],
    }
    if isinstance(spec, str):
        if spec not in groups:
            raise ConfigError(f"teacher.injection.blocks={spec!r}: {nearest(spec, groups)}, or a list of block names")
        if not groups[spec]:
            raise ConfigError(
                f"teacher.injection.blocks={spec}: this model has {len(single)} single blocks, none of that group; "
                "use all, single, double or a list"
            )
        return groups[spec]
    for name in spec:
        if name not in names:
            raise ConfigError(f"teacher.injection.blocks: no block {name!r}; {nearest(name, names)}")
    return list(spec)

"""FLUX with attention keys and values going in and out of its blocks (teacher.md 2.2).

The processor is stateless and shared by all blocks; keys and values travel as call arguments, so one compiled block
serves every step. Keys are stored after RoPE: positions are the same in both passes, and replay saves the rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (-1, attn.head_dim))

        image, text = hidden_states, encoder_hidden_states
        if isinstance(kv_out, torch.Tensor):
            kv_out.copy_((image if text is None else torch.cat([text, image], dim=1))[:, kv_from:])

        query = attn.norm_q(heads(attn.to_q(image)))
        if text is not None:
            query = torch.cat([attn.norm_added_q(heads(attn.add_q_proj(text))), query], dim=1)

        given_key, given_value = kv_in if isinstance(kv_in, tuple) else (None, None)
        if isinstance(kv_in, torch.Tensor):
            image, text = _with_input(image, text, kv_in, kv_from)

        def own(of_image: Projection, of_text: Projection, given: torch.Tensor | None) -> torch.Tensor | None:
            """Keys or values as far as they are not given; None where all are."""
            if given is not None and not kv_from:
                return None
            if text is None:
                return of_image(image if given is None else image[:, :kv_from])
            return of_text(text) if given is not None else torch.cat([of_text(text), of_image(image)], dim=1)

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
        out = out.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return out
        text, image = out.split_with_sizes([encoder_hidden_states.shape[1], hidden_states.shape[1]], dim=1)
        return attn.to_out[1](attn.to_out[0](image.contiguous())), attn.to_add_out(text.contiguous())


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

    def use_injecting_attention(self) -> None:
        """Install one shared processor; call once after loading."""
        processor = InjectingAttention()
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
        x = self.x_embedder(hidden_states)
        if modulation is None:
            assert timestep is not None
            t = timestep.to(x.dtype) * 1000
            scale = () if guidance is None else (guidance.to(x.dtype) * 1000,)
            temb = self.time_text_embed(t, *scale, pooled_projections)
        text = self.context_embedder(encoder_hidden_states)
        rope = self.pos_embed(torch.cat((txt_ids, img_ids), dim=0))
        for name, block in zip(self.block_names(), self._blocks(), strict=True):
            routes: dict[str, Any] = {}
            if kv_in is not None and name in kv_in:
                routes["kv_in"] = kv_in[name]
            if kv_out is not None and name in kv_out:
                routes["kv_out"] = kv_out[name]
            if routes:
                routes["kv_from"] = kv_from
            text, x = block(
                hidden_states=x,
                encoder_hidden_states=text,
                temb=temb if modulation is None else modulation[name],
                image_rotary_emb=rope,
                joint_attention_kwargs=routes,
            )
        out = self.proj_out(self.norm_out(x, temb if modulation is None else modulation["norm_out"]))
        return Transformer2DModelOutput(sample=out) if return_dict else (out,)

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

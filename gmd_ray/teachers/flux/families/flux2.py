"""FLUX.2 with injection, such as FLUX.2 [klein]: one shared modulation, gated MLPs, positions with four axes.

See docs/method.md, "FLUX.2".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from diffusers import Flux2Transformer2DModel
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_flux2 import Flux2ParallelSelfAttention
from torch import nn

from gmd_ray.teachers.acceleration.step_cache import Finish, images_at
from gmd_ray.teachers.flux.attention import Entry, InjectingAttention
from gmd_ray.teachers.flux.families.model import Constants, InjectingModel
from gmd_ray.teachers.flux.latents import image_ids

if TYPE_CHECKING:
    from gmd_ray.teachers.text_encoders import Prompt


class SplitParallelAttention(nn.Module, AttentionModuleMixin):
    """Attention and MLP of a single block, with a projection for each of queries, keys, values and MLP.

    `Flux2ParallelSelfAttention` makes all four by one product and leaves no place to skip keys and values that a replay
    replaces. The parts are rows of its weight, not copies, and the results are equal up to rounding. Under tensor
    parallelism they are this rank's rows.
    """

    processor: Any

    def __init__(self, fused: Flux2ParallelSelfAttention) -> None:
        """Take over the layers of `fused`, whose weights are loaded or on the meta device."""
        super().__init__()
        self.head_dim, self.heads = fused.head_dim, fused.heads
        self.norm_q, self.norm_k, self.mlp_act_fn, self.to_out = (
            fused.norm_q,
            fused.norm_k,
            fused.mlp_act_fn,
            fused.to_out,
        )
        # The rows are [queries, keys, values, gate of the MLP, its values], in these proportions on every rank.
        whole = [fused.inner_dim] * 3 + [fused.mlp_hidden_dim * fused.mlp_mult_factor]
        weight, bias = fused.to_qkv_mlp_proj.weight, fused.to_qkv_mlp_proj.bias
        assert bias is None, "FLUX.2 has no biases"
        rows = [size * len(weight) // sum(whole) for size in whole]
        self.to_q, self.to_k, self.to_v, self.proj_mlp = (_linear(part) for part in weight.detach().split(rows))
        AttentionModuleMixin.set_processor(self, fused.processor)

    def forward(
        self,
        hidden_states: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        **routes: Any,
    ) -> torch.Tensor:
        """(B, T + S, dim) -> the same shape; `routes` are arguments of `InjectingAttention`."""
        attended = self.processor(self, hidden_states, image_rotary_emb=image_rotary_emb, **routes)
        out: torch.Tensor = self.to_out(torch.cat([attended, self.mlp_act_fn(self.proj_mlp(hidden_states))], dim=-1))
        return out


def _linear(weight: torch.Tensor) -> nn.Linear:
    """A linear layer without bias around a weight (out, in), which is not copied."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


class InjectingFlux2(InjectingModel, Flux2Transformer2DModel):
    """Flux2Transformer2DModel whose forward accepts and returns keys and values of its blocks.

    The plain forward (no `kv_in`, no `kv_out`) equals the stock model's up to rounding, about 2e-6 in float32.
    """

    def use_injecting_attention(self, processor: InjectingAttention | None = None) -> None:
        """Split the projections of the single blocks, and install one processor in all blocks; once, after loading."""
        for block in self.single_transformer_blocks:
            block.attn = SplitParallelAttention(block.attn)
        super().use_injecting_attention(processor)

    def conditioning(
        self, prompt: Prompt, t: float, guidance: float | None, batch: int, dtype: torch.dtype, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """Time and guidance, each (1,): one modulation serves the whole batch, and there is no pooled prompt."""
        given = {"timestep": t} if guidance is None else {"timestep": t, "guidance": guidance}
        return {name: torch.full((1,), x, dtype=dtype, device=device) for name, x in given.items()}

    def image_ids(self, h: int, w: int, device: torch.device | None = None) -> torch.Tensor:
        """RoPE positions (h/2 * w/2, 4): (0, row, column, 0)."""
        return nn.functional.pad(image_ids(h, w, device), (0, 1))

    def text_ids(self, count: int, device: torch.device | None = None) -> torch.Tensor:
        """RoPE positions (count, 4): (0, 0, 0, index), where those of FLUX.1 are zeros."""
        return nn.functional.pad(torch.arange(count, dtype=torch.float32, device=device)[:, None], (3, 0))

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        img_ids: torch.Tensor | None = None,
        txt_ids: torch.Tensor | None = None,
        guidance: torch.Tensor | None = None,
        kv_in: Mapping[str, Entry] | None = None,
        kv_out: Mapping[str, Entry] | None = None,
        kv_from: int = 0,
        constants: Constants | None = None,
        finish: Finish | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """The velocity of packed latents.

        Args:
            hidden_states: (B, S, in_channels) packed latents.
            encoder_hidden_states: (B, T, joint_attention_dim) text embeddings; (B, 0, ...) where `kv_in` holds the keys
                and values of all tokens for every block, so that no image token attends to the text.
            timestep: (B,) or (1,) in [0, 1]; 1 is noise.
            img_ids, txt_ids: (S, 4) and (T, 4) RoPE positions.
            guidance: (B,) or (1,) distilled guidance scale, for models that embed one.
            kv_in: block name -> entry that replaces the block's own keys and values, from token `kv_from` on.
            kv_out: block name -> buffers that receive the block's own, from token `kv_from` on.
            kv_from: 0 for all tokens, T for image tokens alone.
            constants: see `InjectingModel.constants`. With them, text embeddings and positions are None.
            finish: decides for which images the blocks after the first run, see `step_cache`; None runs them for all.

        Returns:
            (B, S, out_channels * patch_size**2).
        """
        assert timestep is not None
        x, text, rope, tokens = self._opening(hidden_states, encoder_hidden_states, img_ids, txt_ids, constants)
        # Cast to the model's dtype in [0, 1] and scaled afterwards, as in Flux2Transformer2DModel.forward.
        scale = None if guidance is None else guidance.to(x.dtype) * 1000
        temb = self.time_guidance_embed(timestep.to(x.dtype) * 1000, scale)
        # Three layers make the shifts, scales and gates of all blocks.
        of_image, of_text = self.double_stream_modulation_img(temb), self.double_stream_modulation_txt(temb)
        of_both = self.single_stream_modulation(temb)
        routes = [self._routes(name, tokens, kv_in, kv_out, kv_from) for name in self.block_names()]
        double = list(self.transformer_blocks)

        def run(
            part: slice, stream: list[torch.Tensor], rows: torch.Tensor | None = None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            x, text = stream
            stream.clear()  # no caller keeps what the blocks have replaced
            for block, route in zip(double[part], routes[: len(double)][part], strict=True):
                text, x = block(
                    hidden_states=x,
                    encoder_hidden_states=text,
                    temb_mod_img=images_at(of_image, rows),
                    temb_mod_txt=images_at(of_text, rows),
                    image_rotary_emb=rope,
                    joint_attention_kwargs=route,
                )
            return x, text

        def end(part: slice, stream: list[torch.Tensor], rows: torch.Tensor | None = None) -> torch.Tensor:
            # Single blocks have [text, image] as one sequence, whose text is of no use after the last of them.
            last = torch.cat(run(part, stream, rows)[::-1], dim=1)
            for block, route in zip(self.single_transformer_blocks, routes[len(double) :], strict=True):
                last = block(
                    hidden_states=last,
                    encoder_hidden_states=None,
                    temb_mod=images_at(of_both, rows),
                    image_rotary_emb=rope,
                    joint_attention_kwargs=route,
                )
            return last[:, count:]

        stream, count = [x, text], text.shape[1]
        del x, text
        if finish is None:
            x = end(slice(None), stream)
        else:
            before = stream[0]
            after, words = run(slice(0, 1), stream)

            def rest(rows: torch.Tensor | None) -> torch.Tensor:
                return end(slice(1, None), [images_at(after, rows), images_at(words, rows)], rows)

            x = finish(before, after, rest)
        out = self.all_tokens(self.proj_out(self.norm_out(x, temb)), tokens.image)
        return Transformer2DModelOutput(sample=out) if return_dict else (out,)

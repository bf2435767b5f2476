"""FLUX.1 with injection: FLUX.1-dev, Kontext, and models of its layout such as OpenFLUX.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from gmd_ray.teachers.acceleration.step_cache import Finish, images_at
from gmd_ray.teachers.flux.attention import Entry
from gmd_ray.teachers.flux.families.model import Constants, InjectingModel
from gmd_ray.teachers.flux.latents import image_ids

if TYPE_CHECKING:
    from gmd_ray.teachers.text_encoders import Prompt


class InjectingFlux(InjectingModel, FluxTransformer2DModel):
    """FluxTransformer2DModel whose forward accepts and returns keys and values of its blocks.

    The plain forward (no `kv_in`, no `kv_out`) equals the stock model's bit for bit.
    """

    def conditioning(
        self, prompt: Prompt, t: float, guidance: float | None, batch: int, dtype: torch.dtype, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """Time, guidance and pooled prompt, each with the batch as its first dimension."""
        given = {"timestep": t} if guidance is None else {"timestep": t, "guidance": guidance}
        numbers = {name: torch.full((batch,), x, dtype=dtype, device=device) for name, x in given.items()}
        return {"pooled_projections": prompt.pooled.to(device, dtype).expand(batch, -1), **numbers}

    def image_ids(self, h: int, w: int, device: torch.device | None = None) -> torch.Tensor:
        """RoPE positions (h/2 * w/2, 3): (0, row, column)."""
        return image_ids(h, w, device)

    def text_ids(self, count: int, device: torch.device | None = None) -> torch.Tensor:
        """RoPE positions (count, 3), all zeros."""
        return torch.zeros(count, 3, device=device)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        pooled_projections: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        img_ids: torch.Tensor | None = None,
        txt_ids: torch.Tensor | None = None,
        guidance: torch.Tensor | None = None,
        modulation: Mapping[str, torch.Tensor] | None = None,
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
            pooled_projections: (B, pooled_projection_dim).
            timestep: (B,) in [0, 1]; 1 is noise.
            img_ids, txt_ids: (S, 3) and (T, 3) RoPE positions.
            guidance: (B,) distilled guidance scale, for models that embed one.
            modulation: block name -> row of its adaptive norms, see `modulation.ModulationTables`. With it, pooled
                prompt, time and guidance are None: the rows already depend on them.
            kv_in: block name -> entry that replaces the block's own keys and values, from token `kv_from` on.
            kv_out: block name -> buffers that receive the block's own, from token `kv_from` on.
            kv_from: 0 for all tokens, T for image tokens alone.
            constants: see `InjectingModel.constants`. With them, text embeddings and positions are None.
            finish: decides for which images the blocks after the first run, see `step_cache`; None runs them for all.

        Returns:
            (B, S, out_channels * patch_size**2).
        """
        x, text, rope, tokens = self._opening(hidden_states, encoder_hidden_states, img_ids, txt_ids, constants)
        if modulation is None:
            assert timestep is not None
            # Time and guidance are cast to the model's dtype in [0, 1] and scaled afterwards, as in
            # FluxTransformer2DModel.forward: the other order rounds differently in bfloat16.
            t = timestep.to(x.dtype) * 1000
            scale = () if guidance is None else (guidance.to(x.dtype) * 1000,)
            temb = self.time_text_embed(t, *scale, pooled_projections)
        # The text stream has T rows, or none where it is dead; RoPE always covers the keys of all T + S tokens.
        count, first_single = text.shape[1], len(self.transformer_blocks)
        blocks = list(enumerate(zip(self.block_names(), self._blocks(), strict=True)))

        def run(
            part: slice, stream: list[torch.Tensor], rows: torch.Tensor | None = None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            x, text = stream
            stream.clear()  # no caller keeps what the blocks have replaced
            for i, (name, block) in blocks[part]:
                if i == first_single:
                    # Single blocks work on [text, image] as one sequence. It goes from block to block whole, as an
                    # image without text, where stock code cuts it after each block and joins it before the next.
                    x = torch.cat([text, x], dim=1)
                    text = x[:, :0]
                text, x = block(
                    hidden_states=x,
                    encoder_hidden_states=text,
                    temb=images_at(temb if modulation is None else modulation[name], rows),
                    image_rotary_emb=rope,
                    joint_attention_kwargs=self._routes(name, tokens, kv_in, kv_out, kv_from),
                )
            return x, text

        stream, first = [x, text], count if self.single_transformer_blocks else 0
        del x, text
        if finish is None:
            x = run(slice(None), stream)[0][:, first:]
        else:
            before = stream[0]
            after, words = run(slice(0, 1), stream)

            def rest(rows: torch.Tensor | None) -> torch.Tensor:
                return run(slice(1, None), [images_at(after, rows), images_at(words, rows)], rows)[0][:, first:]

            x = finish(before, after, rest)
        last = temb if modulation is None else modulation["norm_out"]
        out = self.all_tokens(self.proj_out(self.norm_out(x, last)), tokens.image)
        return Transformer2DModelOutput(sample=out) if return_dict else (out,)

"""The blocks of FLUX.1 with fewer passes over memory: gelu inside the MLP's product, no concatenation before the last.

The plain blocks of diffusers do the same operations one by one; the results agree to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from torch import nn
from torch.nn import functional as F

from gmd_ray.teachers.acceleration.fused import is_dense, linear_gelu, split_linear


class GeluLinear(nn.Module):
    """A linear layer with gelu (tanh) at its end, in the place of diffusers' `GELU` and with its parameter names."""

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.proj: nn.Module = proj  # a linear layer until it is quantized

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.proj, nn.Linear):
            return linear_gelu(self.proj, x)
        return F.gelu(self.proj(x), approximate="tanh")


class SplitSingleBlock(FluxSingleTransformerBlock):
    """A single block that multiplies the outputs of attention and MLP with their own columns of the last weight."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, S, dim) image and (B, T, dim) text -> (text, image), as the plain block."""
        if not isinstance(self.proj_out, nn.Linear):  # quantized since
            return super().forward(hidden_states, encoder_hidden_states, temb, image_rotary_emb, joint_attention_kwargs)
        text = encoder_hidden_states.shape[1]
        residual = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        x, gate = self.norm(residual, emb=temb)
        mlp = linear_gelu(self.proj_mlp, x)
        attended = self.attn(hidden_states=x, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {}))
        out = residual + gate.unsqueeze(1) * split_linear(self.proj_out, attended, mlp)
        return out[:, :text], out[:, text:]


def fuse_products(model: nn.Module) -> None:
    """Let the blocks of a FLUX.1 transformer work so; quantized layers and those of several ranks stay as they are."""
    block: Any  # diffusers does not annotate its blocks
    for block in model.modules():
        if type(block) is FluxTransformerBlock:
            for feed_forward in (block.ff, block.ff_context):
                if is_dense(feed_forward.net[0].proj):
                    feed_forward.net[0] = GeluLinear(feed_forward.net[0].proj)
        elif type(block) is FluxSingleTransformerBlock and is_dense(block.proj_mlp) and is_dense(block.proj_out):
            block.__class__ = SplitSingleBlock

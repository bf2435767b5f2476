"""The blocks of FLUX.1 with fewer passes over memory.

Gelu is the last step of the MLP's product, a single block's last product takes attention and MLP without a
concatenation, and each adaptive norm is one kernel (`modulated_norm`). The plain blocks of diffusers do the same
operations one by one; the results agree to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from torch import nn
from torch.nn import functional as F

from gmd_ray.teachers.acceleration.fused import is_dense, linear_gelu, split_linear
from gmd_ray.teachers.acceleration.modulated_norm import gated_sum_and_norm, modulated_norm


class GeluLinear(nn.Module):
    """A linear layer with gelu (tanh) at its end, in the place of diffusers' `GELU` and with its parameter names."""

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.proj: nn.Module = proj  # a linear layer until it is quantized

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.proj, nn.Linear):
            return linear_gelu(self.proj, x)
        return F.gelu(self.proj(x), approximate="tanh")


class FusedDoubleBlock(FluxTransformerBlock):
    """A double block whose sums and norms pass over each token once."""

    kernel: bool
    """Use the Triton kernel for the norms."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, S, dim) image and (B, T, dim) text -> (text, image), as the plain block."""
        streams = []
        for x, norm in ((hidden_states, self.norm1), (encoder_hidden_states, self.norm1_context)):
            shift, scale, *rest = norm.linear(norm.silu(temb)).chunk(6, dim=1)
            streams.append((x, modulated_norm(x, scale, shift, kernel=self.kernel), rest))
        (image, image_normed, of_image), (text, text_normed, of_text) = streams
        attended = self.attn(
            hidden_states=image_normed,
            encoder_hidden_states=text_normed,
            image_rotary_emb=image_rotary_emb,
            **(joint_attention_kwargs or {}),
        )
        image = self._second_half(image, attended[0], of_image, self.ff)
        return self._second_half(text, attended[1], of_text, self.ff_context), image

    def _second_half(
        self, x: torch.Tensor, attended: torch.Tensor, modulation: list[torch.Tensor], mlp: nn.Module
    ) -> torch.Tensor:
        """Add one stream's gated attention, then its gated MLP; the modulation is (gate, shift, scale, gate)."""
        gate, shift, scale, mlp_gate = modulation
        x, normed = gated_sum_and_norm(x, gate, attended, scale, shift, kernel=self.kernel)
        return x + mlp_gate.unsqueeze(1) * mlp(normed)


class SplitSingleBlock(FluxSingleTransformerBlock):
    """A single block that multiplies the outputs of attention and MLP with their own columns of the last weight."""

    kernel: bool
    """Use the Triton kernel for the norm."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, S, dim) image and (B, T, dim) text -> (text, image), as the plain block."""
        text = encoder_hidden_states.shape[1]
        residual = torch.cat([encoder_hidden_states, hidden_states], dim=1) if text else hidden_states
        shift, scale, gate = self.norm.linear(self.norm.silu(temb)).chunk(3, dim=1)
        x = modulated_norm(residual, scale, shift, kernel=self.kernel)
        dense = isinstance(self.proj_out, nn.Linear)  # until it is quantized
        mlp = linear_gelu(self.proj_mlp, x) if dense else F.gelu(self.proj_mlp(x), approximate="tanh")
        attended = self.attn(hidden_states=x, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {}))
        if dense:
            product = split_linear(self.proj_out, attended, mlp)
        else:
            product = self.proj_out(torch.cat([attended, mlp], dim=2))
        out = residual + gate.unsqueeze(1) * product
        return out[:, :text], out[:, text:]


def fuse_blocks(model: nn.Module, *, kernel: bool) -> None:
    """Let the blocks of a FLUX.1 transformer work so; layers that several ranks share stay as they are.

    Args:
        kernel: use the Triton kernel for the norms, see `modulated_norm.trustworthy_norm`.
    """
    block: Any  # diffusers does not annotate its blocks
    for block in model.modules():
        if type(block) is FluxTransformerBlock:
            for feed_forward in (block.ff, block.ff_context):
                if is_dense(feed_forward.net[0].proj):
                    feed_forward.net[0] = GeluLinear(feed_forward.net[0].proj)
            block.__class__, block.kernel = FusedDoubleBlock, kernel
        elif type(block) is FluxSingleTransformerBlock:
            block.__class__, block.kernel = SplitSingleBlock, kernel

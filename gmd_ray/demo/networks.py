"""The networks that the demo's worlds train, untrained, and the running average of their weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

TEXT_TOKENS, TEXT_DIM = 4, 32
"""Number and width of the embeddings of a prompt."""


def build_transformer(double_blocks: int, single_blocks: int, heads: int, head_dim: int) -> FluxTransformer2DModel:
    """Build a FluxTransformer2DModel for a space-to-depth codec whose modulations and output layer start at zero."""
    from diffusers import FluxTransformer2DModel

    third = head_dim // 8
    model = FluxTransformer2DModel(
        in_channels=48,
        num_layers=double_blocks,
        num_single_layers=single_blocks,
        attention_head_dim=head_dim,
        num_attention_heads=heads,
        joint_attention_dim=TEXT_DIM,
        pooled_projection_dim=TEXT_DIM,
        guidance_embeds=False,
        axes_dims_rope=(2 * third, 3 * third, 3 * third),
    )
    for name, parameter in model.named_parameters():
        if name.startswith("proj_out") or (".linear." in name and "norm" in name):
            torch.nn.init.zeros_(parameter)
    return model


def build_denoiser(channels: int, layers: int) -> torch.nn.Module:
    """A residual DnCNN of spandrel without batch normalisation: 3 -> channels -> ... -> 3."""
    from spandrel.architectures.DnCNN import DnCNN

    return DnCNN(in_nc=3, out_nc=3, nc=channels, nb=layers, act_mode="R")


@torch.no_grad()
def update_average(average: Iterable[torch.Tensor], weights: Iterable[torch.Tensor], step: int, longest: float) -> None:
    """Move the average towards the weights after a step.

    Args:
        average: tensors that are changed in place.
        weights: the tensors that they are the average of.
        step: number of the step, from 0. The decay grows with it, so that the first weights are soon forgotten.
        longest: largest decay.
    """
    torch._foreach_lerp_(list(average), list(weights), 1 - min(longest, (step + 1) / (step + 10)))

"""Queries, keys and values of two streams as one sequence, and their rotation by position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.embeddings import apply_rotary_emb


def concatenated(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The parts along their tokens, (B, tokens, heads, head_dim); a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def rotate(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], first: int = 0) -> torch.Tensor:
    """Rotate (B, tokens, heads, head_dim) by the rows of the RoPE tables from `first` on."""
    cos, sin = (table[first : first + x.shape[1]] for table in rope)
    return apply_rotary_emb(x, (cos, sin), sequence_dim=1)


def join(own: torch.Tensor | None, given: torch.Tensor | None) -> torch.Tensor | None:
    """The block's own tokens followed by the given ones, along the tokens of (B, tokens, heads, head_dim)."""
    if own is None or given is None:
        return given if own is None else own
    return torch.cat([own, given], dim=1)


def with_input(
    image: torch.Tensor, text: torch.Tensor | None, given: torch.Tensor, kv_from: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Put another pass's attention input (B, tokens, dim), from token `kv_from` on, in the place of the block's own.

    Returns:
        (image, text) to project keys and values from; text is None for a single block.
    """
    if text is None:
        # A single block has [text, image] in one tensor: its first kv_from tokens stay its own.
        return (torch.cat([image[:, :kv_from], given], dim=1) if kv_from else given), None
    if kv_from:
        return given, text  # image tokens alone are given
    given_text, given_image = given.split_with_sizes([given.shape[1] - image.shape[1], image.shape[1]], dim=1)
    return given_image, given_text

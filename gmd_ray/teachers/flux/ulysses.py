"""A FLUX transformer shared by the k ranks of a process group: Ulysses context parallelism (Jacobs et al., 2023).

Each rank holds all weights and 1/k of the tokens. In attention the ranks exchange tokens for heads, so that each
attends over all tokens with 1/k of the heads. Keys and values are kept after the exchange, 1/k on each rank, so a
replay need not exchange them again. There is less traffic than with tensor parallelism: four exchanges of 1/k of the
tokens per block instead of sums over all tokens. The price is the whole weights on every GPU, and k copies in host
memory while they load. diffusers' own context parallelism caches before the exchange, needs token counts that k
divides or a further collective to learn them, and does not start without an accelerator. See docs/decisions.md,
"Several GPUs".

Token counts that k does not divide are split as `torch.tensor_split` does: the first ranks have one token more.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn import functional as F

from gmd_ray.errors import ConfigError
from gmd_ray.teachers.flux.attention import InjectingAttention
from gmd_ray.teachers.flux.families.flux1 import InjectingFlux
from gmd_ray.teachers.flux.families.flux2 import InjectingFlux2
from gmd_ray.teachers.flux.families.model import InjectingModel


class UlyssesAttention(InjectingAttention):
    """Attention that exchanges tokens for heads before, and heads for tokens after."""

    def here(self, text: int) -> int:
        return counts(text)[dist.get_rank()]

    def collect(self, x: torch.Tensor, text: int, image: int) -> torch.Tensor:
        """(B, tokens of this rank, heads, head_dim) -> (B, all tokens, heads / k, head_dim), text first."""
        # Every rank sends to each other rank that rank's heads of its own tokens, and receives its own heads of
        # the other's tokens.
        batch, here, heads, dim = x.shape
        ranks = dist.get_world_size()
        texts, images = counts(text), counts(image)
        # Numbers for one token of the received heads; ranks may have different counts of tokens.
        piece = batch * heads // ranks * dim
        sizes = [piece * (t + i) for t, i in zip(texts, images, strict=True)]
        received = x.new_empty(sum(sizes))
        # (ranks, B, tokens of this rank, heads / k, head_dim): one contiguous piece for each receiver.
        by_heads = x.unflatten(2, (ranks, heads // ranks)).movedim(2, 0).contiguous()
        dist.all_to_all_single(received, by_heads.flatten(), sizes, [piece * here] * ranks)
        # From each sender (B, its tokens, heads / k, head_dim), its text before its image. All text goes first.
        parts = [part.view(batch, -1, heads // ranks, dim) for part in received.split(sizes)]
        of_text = [part[:, :t] for part, t in zip(parts, texts, strict=True)]
        of_image = [part[:, t:] for part, t in zip(parts, texts, strict=True)]
        return torch.cat([*of_text, *of_image], dim=1)

    def hand_back(self, x: torch.Tensor, text: int, image: int) -> torch.Tensor:
        """(B, all tokens, heads / k, head_dim) -> (B, tokens of this rank, heads, head_dim)."""
        batch, _, heads, dim = x.shape
        ranks, rank = dist.get_world_size(), dist.get_rank()
        texts, images = counts(text), counts(image)
        # Here `heads` are this rank's heads / k. Each receiver gets its own tokens of them, text before image.
        piece = batch * heads * dim
        sizes = [piece * (t + i) for t, i in zip(texts, images, strict=True)]
        by_tokens = zip(x[:, :text].split(texts, dim=1), x[:, text:].split(images, dim=1), strict=True)
        sent = torch.cat([torch.cat(pair, dim=1).flatten() for pair in by_tokens])
        received = x.new_empty(sizes[rank] * ranks)
        dist.all_to_all_single(received, sent, [sizes[rank]] * ranks, sizes)
        # (ranks, B, tokens, heads / k, head_dim) -> (B, tokens, ranks, heads / k, head_dim) -> all heads in order.
        return received.view(ranks, batch, -1, heads, dim).movedim(0, 2).flatten(2, 3)


class SharedTokens(InjectingModel):
    """A model whose ranks each hold part of the tokens; inputs and outputs are whole on every rank."""

    shares_tokens = True

    def tokens_here(self, x: torch.Tensor) -> torch.Tensor:
        return x.split(counts(x.shape[1]), dim=1)[dist.get_rank()]

    def all_tokens(self, x: torch.Tensor, count: int) -> torch.Tensor:
        shares = counts(count)
        # all_gather needs equal shapes: pad to the longest share, which is the first, and cut again.
        padded = F.pad(x, (0, 0, 0, shares[0] - x.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in shares]
        dist.all_gather(parts, padded)
        return torch.cat([part[:, :share] for part, share in zip(parts, shares, strict=True)], dim=1)

    def input_kept(self, text: int, image: int) -> tuple[int, int]:
        rank = dist.get_rank()
        return counts(text)[rank] + counts(image)[rank], self.inner_dim


class UlyssesFlux(SharedTokens, InjectingFlux):
    """FLUX.1 with its tokens divided among the ranks."""


class UlyssesFlux2(SharedTokens, InjectingFlux2):
    """FLUX.2 with its tokens divided among the ranks."""


def share_tokens(model: InjectingModel) -> None:
    """Divide the tokens of this model among the ranks, each of which has loaded all weights.

    Raises:
        ConfigError: the number of ranks does not divide the number of attention heads.
    """
    ranks, heads = dist.get_world_size(), model.config.num_attention_heads
    if heads % ranks:
        raise ConfigError(f"teacher.gpus_per_replica={ranks}: must divide the model's {heads} attention heads")
    model.ranks = ranks
    model.use_injecting_attention(UlyssesAttention())


def counts(tokens: int) -> list[int]:
    """The number of tokens of each rank, of that many over all ranks; the first ranks may have one more."""
    ranks = dist.get_world_size()
    return [tokens // ranks + (rank < tokens % ranks) for rank in range(ranks)]

"""Classifier-free guidance, as every teacher with `teacher.true_cfg` applies it."""

from __future__ import annotations

import torch


def guide(null: torch.Tensor, prompted: torch.Tensor, scale: float) -> torch.Tensor:
    """null + scale * (prompted - null): predictions without and with the prompt, combined (Ho and Salimans, 2022).

    Args:
        null, prompted: predictions of one shape, at the same latents and time.
        scale: 0 gives the null prediction, 1 the prompted one, more overshoots. See docs/method.md, "Guidance".
    """
    return null + scale * (prompted - null)

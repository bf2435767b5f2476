"""Stage 2: the student's fine-tune on source pairs and accepted pairs; and its training on the source before."""

from __future__ import annotations

from gmd_ray.training.finetune import finetune
from gmd_ray.training.plan import Finetuned, finetuned_path
from gmd_ray.training.pretrain import pretrain

__all__ = ["Finetuned", "finetune", "finetuned_path", "pretrain"]

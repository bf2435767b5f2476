"""Stage 2: the student's fine-tune on source pairs and accepted pairs."""

from __future__ import annotations

from gmd_ray.training.finetune import finetune
from gmd_ray.training.plan import Finetuned, finetuned_path

__all__ = ["Finetuned", "finetune", "finetuned_path"]

"""Stage 2: fine-tuning the student on source pairs and accepted pairs; and pre-training it on source pairs alone."""

from __future__ import annotations

from gmd_ray.training.finetune import finetune
from gmd_ray.training.pretrain import pretrain, refuse_begun_pretraining
from gmd_ray.training.resume import refuse_begun, refuse_other_settings
from gmd_ray.training.spec import Finetuned, finetuned_path

__all__ = [
    "Finetuned",
    "finetune",
    "finetuned_path",
    "pretrain",
    "refuse_begun",
    "refuse_begun_pretraining",
    "refuse_other_settings",
]

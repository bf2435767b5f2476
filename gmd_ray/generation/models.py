"""The loaders of a run's three models, and the settings that they get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from gmd_ray.config import Config, ScorerConfig, StudentConfig, TeacherConfig
from gmd_ray.quality import Scorer, load_scorer
from gmd_ray.storage import absolute_if_exists
from gmd_ray.students import Student, load_student
from gmd_ray.teachers import Teacher, load_teacher


@dataclass(frozen=True)
class Models:
    """The functions that load the models of a run. Plugins and tests put their own here; each must pickle."""

    student: Callable[[StudentConfig], Student] = load_student
    teacher: Callable[[TeacherConfig], Teacher] = load_teacher
    scorer: Callable[[ScorerConfig], Scorer] = load_scorer

    @property
    def needs_prompts(self) -> bool:
        """True if the run encodes the teacher's prompts before the teacher is loaded.

        Only gmd_ray's own loader takes them so. Another loader has prompts of its own, or none.
        """
        return self.teacher is load_teacher


def model_configs(cfg: Config) -> dict[str, Any]:
    """Return the models' sections of the settings with absolute local paths.

    Workers need not share the driver's directory.
    """
    return {
        "student": replace(cfg.student, path=absolute_if_exists(cfg.student.path)),
        "teacher": replace(
            cfg.teacher,
            path=absolute_if_exists(cfg.teacher.path),
            prompt_embeddings=absolute_if_exists(cfg.teacher.prompt_embeddings),
        ),
        "scorer": replace(
            cfg.scorer,
            path=absolute_if_exists(cfg.scorer.path),
            weights=absolute_if_exists(cfg.scorer.weights),
            fidelity_weights=absolute_if_exists(cfg.scorer.fidelity_weights),
        ),
    }

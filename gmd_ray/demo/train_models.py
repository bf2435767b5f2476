"""`gmd-ray demo train-models`: the three models of the toy world, as shipped in `gmd_ray/demo/toy/weights`."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

log = logging.getLogger("gmd_ray")

FIGURES = "training.json"
"""File with the recipes and figures of the training, beside the weights."""


def train_models(dest: str | Path, only: str | None = None) -> None:
    """Train teacher, student and scorer (or `only` one) into `dest`.

    The last bits of CPU arithmetic differ between machines, so that only the same kind of machine gives the same
    weights again.
    """
    from gmd_ray.demo.toy.train_scorer import ScorerRecipe, train_scorer
    from gmd_ray.demo.toy.train_student import StudentRecipe, train_student
    from gmd_ray.demo.toy.train_teacher import TeacherRecipe, train_teacher

    dest = Path(dest)
    dest.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {}
    if (dest / FIGURES).is_file():
        record = json.loads((dest / FIGURES).read_text())
    jobs: dict[str, Any] = {
        "scorer": (ScorerRecipe(), lambda recipe: train_scorer(dest / "scorer", recipe)),
        "student": (StudentRecipe(), lambda recipe: train_student(dest / "student.safetensors", recipe)),
        "teacher": (TeacherRecipe(), lambda recipe: train_teacher(dest / "teacher", recipe)),
    }
    for name, (recipe, train) in jobs.items():
        if only in (None, name):
            record[name] = {"recipe": asdict(recipe), "figures": train(recipe)}
            log.info("%s: %s", name, record[name]["figures"])
            (dest / FIGURES).write_text(json.dumps(record, indent=2) + "\n")

"""`gmd-ray demo train-models`: the models of the demo's two worlds, as shipped in each world's `weights` folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gmd_ray.errors import ConfigError

log = logging.getLogger("gmd_ray")

FIGURES = "training.json"
"""File with the recipes and figures of the training, beside the weights."""

Jobs = dict[str, tuple[Any, Callable[[Any], dict[str, Any]]]]
"""Name of a model -> its recipe, and the function that trains it by a recipe and returns figures."""


@dataclass(frozen=True)
class TrainingBudget:
    """Changes of the photographs' recipes, for machines without a GPU; None leaves the recipe's value."""

    steps: int | None = None
    batch: int | None = None

    def apply(self, recipe: Any) -> Any:
        """Return the recipe with these values; the schedule of the learning rate keeps its shape."""
        changed = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(recipe, **changed)


def train_models(
    dest: str | Path,
    world: str = "photos",
    photos: str | None = None,
    only: str | None = None,
    device: str = "auto",
    budget: TrainingBudget | None = None,
) -> None:
    """Train teacher, student and scorer (or `only` one) of a world into `dest`.

    The last bits of arithmetic differ between machines, so that only the same kind of machine gives the same weights
    again.

    Args:
        world: `photos` or `toy`.
        photos: folder of photographs, for the world `photos`.
        device: device of the photographs' teacher; all else is trained on the CPU.
        budget: changes of the photographs' recipes.

    Raises:
        ConfigError: `photos` is missing, or an argument does not belong to the world.
        DataError: the folder has too few photographs.
    """
    if world == "toy" and (photos or budget or device != "auto"):
        raise ConfigError("--photos, --device, --steps and --batch go with --world photos; the toy world has none")
    if world == "photos" and not photos:
        raise ConfigError("--world photos: give the folder of photographs to train on as --photos DIR")
    dest = Path(dest)
    jobs = (
        _photo_jobs(dest, str(photos), only, device, budget or TrainingBudget())
        if world == "photos"
        else _toy_jobs(dest)
    )
    dest.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {}
    if (dest / FIGURES).is_file():
        record = json.loads((dest / FIGURES).read_text())
    for name, (recipe, train) in jobs.items():
        if only in (None, name):
            record[name] = {"recipe": asdict(recipe), "figures": train(recipe)}
            log.info("%s: %s", name, record[name]["figures"])
            (dest / FIGURES).write_text(json.dumps(record, indent=2) + "\n")


def _toy_jobs(dest: Path) -> Jobs:
    from gmd_ray.demo.toy.train_scorer import ScorerRecipe, train_scorer
    from gmd_ray.demo.toy.train_student import StudentRecipe, train_student
    from gmd_ray.demo.toy.train_teacher import TeacherRecipe, train_teacher

    return {
        "scorer": (ScorerRecipe(), lambda recipe: train_scorer(dest / "scorer", recipe)),
        "student": (StudentRecipe(), lambda recipe: train_student(dest / "student.safetensors", recipe)),
        "teacher": (TeacherRecipe(), lambda recipe: train_teacher(dest / "teacher", recipe)),
    }


def _photo_jobs(dest: Path, photos: str, only: str | None, device: str, budget: TrainingBudget) -> Jobs:
    from gmd_ray.demo.photos.tiles import cut_folder, moderate_photographs
    from gmd_ray.demo.photos.train_scorer import PhotoScorerRecipe, train_scorer
    from gmd_ray.demo.photos.train_student import PhotoStudentRecipe, train_student
    from gmd_ray.demo.photos.train_teacher import PhotoTeacherRecipe, train_teacher
    from gmd_ray.devices import choose_device

    chosen = choose_device(device, "--device")
    scorer, student, teacher = (
        budget.apply(recipe) for recipe in (PhotoScorerRecipe(), PhotoStudentRecipe(), PhotoTeacherRecipe())
    )
    # Read before any training, so that a folder with too few photographs is refused at once.
    tiles = cut_folder(photos, teacher.seed, teacher.pool)
    whole = moderate_photographs(photos, student.seed, student.pool, student.crop) if only in (None, "student") else []
    return {
        "scorer": (scorer, lambda recipe: train_scorer(dest / "scorer", tiles, recipe)),
        "student": (student, lambda recipe: train_student(dest / "student.safetensors", whole, recipe)),
        "teacher": (teacher, lambda recipe: train_teacher(dest / "teacher", tiles, recipe, chosen)),
    }

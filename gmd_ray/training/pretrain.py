"""A student trained on the source domain alone, which the adaptation then starts from.

The paper's students had 500K iterations on their source pairs; a deblurring SwinIR is published nowhere, so that this
has to be at hand (restoration.md 0). It is the fine-tune's loop at a source ratio of 1, with settings of its own.
"""

from __future__ import annotations

import dataclasses
import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

from gmd_ray.config import Config
from gmd_ray.config.secrets import digested_values
from gmd_ray.errors import ConfigError, ResumeMismatchError
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.progress import Recorder
from gmd_ray.training.digests import digest_of_path
from gmd_ray.training.finetune import finetune
from gmd_ray.training.resume import is_begun, refuse_begun
from gmd_ray.training.run_files import read_json, write_json
from gmd_ray.training.spec import Finetuned, finetuned_path

log = logging.getLogger("gmd_ray.training")

RECIPE = "initial.json"
"""In the folder of `pretrained`: what the new start beside it was made from."""

_MILESTONES = (Fraction(1, 2), Fraction(4, 5), Fraction(9, 10), Fraction(19, 20))
"""Of the run: 250K, 400K, 450K and 475K of 500K, BasicSR's and KAIR's for SwinIR (restoration.md 1.5)."""


def pretrain(cfg: Config, recorder: Recorder | None = None, *, inputs: RunInputs | None = None) -> Finetuned:
    """Train a student on the source pairs; into `<out>/finetune/pretrained`.

    It starts from a new network (`pretrain.architecture`), from the architecture of `student.path` with new weights
    (`pretrain.reinitialise`), or from `student.path` as it is. What `pretrain` does not say, `training` does. Resume,
    figures and errors are `finetune`'s.

    Raises:
        ConfigError: neither an architecture nor a checkpoint to start from.
    """
    asked = _as_finetune(cfg)
    training = asked.training
    log.info(
        "pretrain: steps=%d, lr=%g, schedule=%s%s of the section pretrain; the rest as in training",
        training.steps,
        training.lr,
        training.schedule,
        f" (at {', '.join(map(str, training.milestones))})" if training.milestones else "",
    )
    student = dataclasses.replace(cfg.student, path=_start(cfg))
    return finetune(dataclasses.replace(asked, student=student), "pretrained", recorder, inputs=inputs)


def refuse_begun_pretraining(cfg: Config, inputs: RunInputs | None = None) -> None:
    """Refuse settings that do not fit a training which was begun or finished; nothing is written, Ray is not needed.

    Raises:
        ResumeMismatchError: naming what differs.
        ConfigError, DataError: as `pretrain`.
    """
    made = _made_start(cfg)
    path = str(cfg.student.path) if made is None else str(made)
    asked = dataclasses.replace(_as_finetune(cfg), student=dataclasses.replace(cfg.student, path=path))
    folder = Path(finetuned_path(asked, "pretrained")).parent
    if not is_begun(folder):
        return
    if made is not None and not (made.is_file() and read_json(folder / RECIPE) == _recipe(cfg)):
        raise ResumeMismatchError(
            f"{folder} was begun from another start (pretrain.architecture, pretrain.arguments, student.path or seed, "
            f"see {RECIPE} there): remove it, or give another out="
        )
    refuse_begun(asked, "pretrained", inputs=inputs)


def _as_finetune(cfg: Config) -> Config:
    """The settings with `pretrain`'s in the place of `training`'s."""
    p = cfg.pretrain
    milestones = [int(share * p.steps) for share in _MILESTONES]
    training = dataclasses.replace(
        cfg.training,
        steps=p.steps,
        lr=p.lr,
        schedule=p.schedule,
        milestones=sorted({step for step in milestones if step > 0}) if p.schedule == "multistep" else [],
        source_ratio=1.0,
    )
    return dataclasses.replace(cfg, training=training)


def _start(cfg: Config) -> str:
    """The checkpoint to start from.

    A new one is written once: a resumed run takes up the file that it began with, whatever library it meets now.
    """
    path = _made_start(cfg)
    if path is None:
        return str(cfg.student.path)

    from gmd_ray.students import new_checkpoint, reinitialised

    p, begun, recipe = cfg.pretrain, path.with_name(RECIPE), _recipe(cfg)
    if path.is_file() and begun.is_file() and read_json(begun) == recipe:
        return str(path)
    begun.unlink(missing_ok=True)
    if p.architecture is not None:
        new_checkpoint(p.architecture, p.arguments, cfg.seed, path)
    else:
        reinitialised(cfg.student, cfg.seed, path)
    write_json(begun, recipe)
    return str(path)


def _made_start(cfg: Config) -> Path | None:
    """Where a new start goes; None where `student.path` is the start as it is."""
    p, given = cfg.pretrain, cfg.student.path
    if p.architecture is None and given is None:
        raise ConfigError("pretrain starts from pretrain.architecture=... or from a checkpoint, student.path=...")
    if p.architecture is None and not p.reinitialise:
        return None
    if "://" in cfg.out:
        raise ConfigError(f"out={cfg.out}: students are files; give a path that every node sees")
    name = "initial.pth" if p.architecture is not None else f"initial{Path(str(given)).suffix}"
    return Path(cfg.out, "finetune", "pretrained", name)


def _recipe(cfg: Config) -> dict[str, Any]:
    """What a new start depends on."""
    p = cfg.pretrain
    arguments = digested_values(p.arguments)
    recipe: dict[str, Any] = {"seed": cfg.seed, "architecture": p.architecture, "arguments": arguments}
    if p.architecture is None:
        recipe["like"] = digest_of_path(str(cfg.student.path))
    return recipe

"""Training a student on the source domain alone, as the start of an adaptation.

The paper's students were trained for 500K iterations on their source pairs, and not all of them are published
(`docs/method.md`, "Students"). Pre-training is the fine-tune's loop at a source ratio of 1, with its own settings.
"""

from __future__ import annotations

import dataclasses
import logging
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

from gmd_ray.config import Config
from gmd_ray.config.places import above, below, name_of
from gmd_ray.config.secrets import digested_values
from gmd_ray.errors import ConfigError, ResumeMismatchError
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.progress import Recorder
from gmd_ray.storage import is_file, local_draft, remove_file
from gmd_ray.training.digests import digest_of_path
from gmd_ray.training.finetune import finetune
from gmd_ray.training.resume import is_begun, refuse_begun
from gmd_ray.training.run_files import read_json, write_json
from gmd_ray.training.spec import Finetuned, finetuned_path

log = logging.getLogger("gmd_ray.training")

RECIPE = "initial.json"
"""File in `<out>/finetune/pretrained` that records how the initial weights beside it were made."""

_MILESTONES = (Fraction(1, 2), Fraction(4, 5), Fraction(9, 10), Fraction(19, 20))
"""Shares of the run after which the learning rate is halved.

BasicSR's `train_SwinIR_SRx4_scratch` has 250K, 400K, 450K and 475K of 500K iterations, and so has KAIR's SwinIR.
"""


def pretrain(cfg: Config, recorder: Recorder | None = None, *, inputs: RunInputs | None = None) -> Finetuned:
    """Train a student on the source pairs, in `<out>/finetune/pretrained`.

    Training starts from a new network (`pretrain.architecture`), from the architecture of `student.path` with new
    weights (`pretrain.reinitialise`), or from `student.path` as it is. Settings that the section `pretrain` lacks are
    taken from `training`. Resuming, figures and other errors are those of `finetune`.

    Args:
        cfg: the settings.
        recorder: see `finetune`.
        inputs: see `finetune`.

    Raises:
        ConfigError: neither an architecture nor a checkpoint to start from is given.
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
    """Refuse settings that differ from those of a begun or finished pre-training; write nothing, need no Ray.

    Raises:
        ResumeMismatchError: settings differ; the message names them.
        ConfigError, DataError: see `pretrain`.
    """
    made = _made_start(cfg)
    path = str(cfg.student.path) if made is None else made
    asked = dataclasses.replace(_as_finetune(cfg), student=dataclasses.replace(cfg.student, path=path))
    # The initial weights, whose ending names that of the student, may not be there yet.
    folder = above(finetuned_path(asked, "pretrained") if made is None else made)
    if not is_begun(folder):
        return
    if made is not None and not (is_file(made) and read_json(below(folder, RECIPE)) == _recipe(cfg)):
        raise ResumeMismatchError(
            f"{folder} was begun from other initial weights (pretrain.architecture, pretrain.arguments, student.path "
            f"or seed, see {RECIPE} there): remove it, or give another out="
        )
    refuse_begun(asked, "pretrained", inputs=inputs)


def _as_finetune(cfg: Config) -> Config:
    """The settings of a fine-tune that does what `pretrain` asks for."""
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
    """The checkpoint to start from; new initial weights are made here.

    They are made once: a resumed run uses the file that it began with, whichever version of a library it meets now.
    """
    path = _made_start(cfg)
    if path is None:
        return str(cfg.student.path)

    from gmd_ray.students import new_checkpoint, reinitialised

    p, begun, recipe = cfg.pretrain, below(above(path), RECIPE), _recipe(cfg)
    if is_file(path) and is_file(begun) and read_json(begun) == recipe:
        return path
    remove_file(begun)
    with local_draft(path) as draft:
        if p.architecture is not None:
            new_checkpoint(p.architecture, p.arguments, cfg.seed, Path(draft))
        else:
            reinitialised(cfg.student, cfg.seed, Path(draft))
    write_json(begun, recipe)
    return path


def _made_start(cfg: Config) -> str | None:
    """The path or URL of new initial weights; None if training starts from `student.path` as it is."""
    p, given = cfg.pretrain, cfg.student.path
    if p.architecture is None and given is None:
        raise ConfigError("pretrain needs a start: set pretrain.architecture=..., or student.path=... for a checkpoint")
    if p.architecture is None and not p.reinitialise:
        return None
    name = "initial.pth" if p.architecture is not None else f"initial{PurePosixPath(name_of(str(given))).suffix}"
    return below(cfg.out, f"finetune/pretrained/{name}")


def _recipe(cfg: Config) -> dict[str, Any]:
    """Everything that new initial weights depend on."""
    p = cfg.pretrain
    arguments = digested_values(p.arguments)
    recipe: dict[str, Any] = {"seed": cfg.seed, "architecture": p.architecture, "arguments": arguments}
    if p.architecture is None:
        recipe["like"] = digest_of_path(str(cfg.student.path))
    return recipe

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
from gmd_ray.errors import ConfigError
from gmd_ray.progress import Recorder
from gmd_ray.training.documents import digest_of_path, read_json, write_json
from gmd_ray.training.finetune import finetune
from gmd_ray.training.plan import Finetuned

log = logging.getLogger("gmd_ray.training")

_MILESTONES = (Fraction(1, 2), Fraction(4, 5), Fraction(9, 10), Fraction(19, 20))
"""Of the run: 250K, 400K, 450K and 475K of 500K, BasicSR's and KAIR's for SwinIR (restoration.md 1.5)."""


def pretrain(cfg: Config, recorder: Recorder | None = None) -> Finetuned:
    """Train a student on the source pairs; into `<out>/finetune/pretrained`.

    It starts from a new network (`pretrain.architecture`), from the architecture of `student.path` with new weights
    (`pretrain.reinitialise`), or from `student.path` as it is. What `pretrain` does not say, `training` does. Resume,
    figures and errors are `finetune`'s.

    Raises:
        ConfigError: neither an architecture nor a checkpoint to start from.
    """
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
    log.info(
        "pretrain: steps=%d, lr=%g, schedule=%s%s of the section pretrain; the rest as in training",
        training.steps,
        training.lr,
        training.schedule,
        f" (at {', '.join(map(str, training.milestones))})" if training.milestones else "",
    )
    student = dataclasses.replace(cfg.student, path=_start(cfg))
    return finetune(dataclasses.replace(cfg, student=student, training=training), "pretrained", recorder)


def _start(cfg: Config) -> str:
    """The checkpoint to start from.

    A new one is written once: a resumed run takes up the file that it began with, whatever library it meets now.
    """
    p, given = cfg.pretrain, cfg.student.path
    if p.architecture is None and given is None:
        raise ConfigError("pretrain starts from pretrain.architecture=... or from a checkpoint, student.path=...")
    if p.architecture is None and not p.reinitialise:
        return str(given)
    if "://" in cfg.out:
        raise ConfigError(f"out={cfg.out}: students are files; give a path that every node sees")

    from gmd_ray.students import new_student, reinitialised

    folder = Path(cfg.out, "finetune", "pretrained")
    path = folder / ("initial.pth" if p.architecture is not None else f"initial{Path(str(given)).suffix}")
    begun = folder / "initial.json"
    recipe: dict[str, Any] = {
        "seed": cfg.seed,
        "architecture": p.architecture,
        "arguments": digested_values(p.arguments),
    }
    if p.architecture is None:
        recipe["like"] = digest_of_path(str(given))
    if path.is_file() and begun.is_file() and read_json(begun) == recipe:
        return str(path)
    begun.unlink(missing_ok=True)
    if p.architecture is not None:
        new_student(p.architecture, p.arguments, cfg.seed, path)
    else:
        reinitialised(cfg.student, cfg.seed, path)
    write_json(begun, recipe)
    return str(path)

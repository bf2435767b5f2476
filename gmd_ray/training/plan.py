"""What a fine-tune is made of, found out before any worker starts; and what it leaves behind.

No torch here: the driver and Ray Train's controller read this module.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gmd_ray.config import Config
from gmd_ray.config.secrets import digested_values
from gmd_ray.config.validate import check_test_sets, check_validation
from gmd_ray.errors import ConfigError, nearest
from gmd_ray.images.sets.pairs import PairFile, list_pairs
from gmd_ray.training.data.targets import TargetPlan, target_plan
from gmd_ray.training.documents import digest, digest_of_files, digest_of_path

CURVE = "curve.jsonl"
"""In a fine-tune's directory: see `gmd_ray.training.curve`."""

SETTINGS = "settings.json"
"""In a fine-tune's directory: what determines its weights, see `gmd_ray.training.resume`."""

SNAPSHOT = "train/checkpoint_manager_snapshot.json"
"""In a fine-tune's directory: Ray Train's list of the checkpoints, which are folders beside it."""

STATE = "state.pt"
"""In the folder of a checkpoint: everything that training goes on from."""

DONE = "finetuned.json"
"""In a fine-tune's directory: what a finished one came to."""

SCORE = "val_psnr"
"""The figure of a validation, in dB; checkpoints are ranked by it."""

NAMES = ("adapted", "source_only", "median", "supervised", "pretrained")

_NO_EFFECT = {
    "num_workers", "min_workers", "use_gpu", "cpus_per_worker", "cache_gb", "channels_last",
    "compile", "accumulate", "strategy", "checkpoint_every", "keep_checkpoints", "log_every", "max_failures",
    "validate_every", "validation_images", "export", "supervised_hq", "perceptual_weights",
}  # fmt: skip
"""Fields of `training` that leave the weights as they are, to the order of summation; or that `settings` sees to.

Two things do depend on the number of workers and on `accumulate`: the branches that stochastic depth skips (SwinIR's
DropPath, in `pretrain` alone), which each worker draws for itself, step by step; and the statistics of batch
normalisation, which are those of a worker's part of the batch, and rank 0's buffers in the checkpoint.
"""


@dataclass(frozen=True)
class Plan:
    """Everything a worker needs; pickled to it."""

    name: str
    cfg: Config
    """With `training.source_ratio` as this fine-tune uses it, and absolute paths."""
    seed: int
    source: tuple[PairFile, ...]
    """Empty where the ratio is 0."""
    target: TargetPlan | None
    """None where the ratio is 1."""
    validation: tuple[PairFile, ...]
    """Held-out source pairs; empty where there is no validation."""
    directory: str
    student: str
    """Where the fine-tuned student goes."""

    def settings(self) -> dict[str, Any]:
        """What determines the weights, as flat JSON values."""
        fields = dataclasses.asdict(self.cfg.training)
        values = {f"training.{key}": value for key, value in fields.items() if key not in _NO_EFFECT}
        values["training.betas"] = list(self.cfg.training.betas)
        values["name"], values["seed"] = self.name, self.seed
        values["student.path"] = digest_of_path(self.cfg.student.path or "")
        if self.cfg.student.factory is not None:
            values["student.factory"] = self.cfg.student.factory
        if self.cfg.training.perceptual and self.cfg.training.perceptual_weights:
            values["training.perceptual_weights"] = digest_of_path(
                self.cfg.training.perceptual_weights, "training.perceptual_weights"
            )
        if self.cfg.training.export == "best":
            chosen_by = ("export", "validate_every", "validation_images")
            values |= {f"training.{key}": getattr(self.cfg.training, key) for key in chosen_by}
        if self.source:
            for key in ("degradation", "degradation_args", "gray"):
                values[f"source.{key}"] = getattr(self.cfg.source, key)
            values["source.lq"] = self.cfg.source.lq is not None  # where the files lie does not matter, their names do
            values["source pairs"] = digest(_names(pair) for pair in self.source)
        if self.target:
            values["accepted pairs"] = self.target.digest
            if self.target.truths:
                values["ground truth"] = digest_of_files(self.target.truths)
        return {key: digested_values(value) for key, value in values.items()}

    def without_listing(self) -> Plan:
        """What the workers need of it: the pairs without `PairFile.files`."""

        def bare(pairs: tuple[PairFile, ...]) -> tuple[PairFile, ...]:
            return tuple(dataclasses.replace(pair, files=()) for pair in pairs)

        return dataclasses.replace(self, source=bare(self.source), validation=bare(self.validation))


@dataclass(frozen=True)
class Finetuned:
    """A finished fine-tune."""

    path: str
    """The student, in the layout of `student.path`."""
    steps: int
    final_loss: float
    """Mean over the last logged interval."""
    seconds: float
    """Wall time of the call that finished it."""
    resumed_from: int | None
    """Step of the checkpoint that this call went on from; None where it started anew."""


def finetuned_path(cfg: Config, name: str, seed: int | None = None) -> str:
    """Where `finetune(cfg, name, seed=seed)` leaves the student.

    Raises:
        ConfigError: for a name that there is not.
    """
    if name not in NAMES:
        raise ConfigError(f"fine-tune {name!r}: no such one; {nearest(name, NAMES)}")
    if cfg.student.path is None:
        raise ConfigError("student.path is not set: give the checkpoint file of the restorer to adapt")
    folder = name if seed is None else f"{name}-seed{seed}"
    path = Path(cfg.student.path)
    suffix = "" if path.is_dir() else path.suffix  # a directory's name may hold dots: ldm-1.3b
    if path.name.endswith(".pth.tar"):  # an old ending of PyTorch's
        suffix = ".pth.tar"
    return os.path.join(os.path.abspath(cfg.out), "finetune", folder, f"student{suffix}")


def make_plan(cfg: Config, name: str, seed: int | None, *, targets: bool = True) -> Plan:
    """List the source pairs and the accepted pairs, and check that there are any.

    Args:
        targets: look for the accepted pairs; without them the plan cannot be trained, only compared.

    Raises:
        ConfigError: settings that cannot be met.
        DataError: no source pairs, no finished pair store, or no accepted pairs.
    """
    student = finetuned_path(cfg, name, seed)
    if "://" in cfg.out:
        raise ConfigError(f"out={cfg.out}: checkpoints and students are files; give a path that every node sees")
    parts = cfg.training.num_workers * cfg.training.accumulate
    if cfg.training.batch_size < parts:
        each = f" x training.accumulate={cfg.training.accumulate}" if cfg.training.accumulate > 1 else ""
        raise ConfigError(
            f"training.batch_size={cfg.training.batch_size} is the global batch: it needs a slot for each of "
            f"training.num_workers={cfg.training.num_workers}{each}"
        )
    ratio = 1.0 if name in ("source_only", "pretrained") else cfg.training.source_ratio
    if not 0 <= ratio <= 1:
        raise ConfigError(f"training.source_ratio={ratio}: must be between 0 and 1")
    source: list[PairFile] = []
    if ratio > 0:
        if cfg.source.hq is None or (cfg.source.lq is None and cfg.source.degradation is None):
            raise ConfigError("source.hq with source.lq or source.degradation is needed at training.source_ratio > 0")
        source = list_pairs(cfg.source.hq, cfg.source.lq, cfg.source.lq_template, cfg.source.limit)
    return Plan(
        name=name,
        cfg=dataclasses.replace(
            cfg,
            training=dataclasses.replace(cfg.training, source_ratio=ratio),
            student=dataclasses.replace(cfg.student, path=os.path.abspath(str(cfg.student.path))),
        ),
        seed=cfg.seed if seed is None else seed,
        source=tuple(source),
        target=target_plan(cfg, name) if ratio < 1 and targets else None,
        validation=_validation(cfg),
        directory=os.path.dirname(student),
        student=student,
    )


def _validation(cfg: Config) -> tuple[PairFile, ...]:
    if not cfg.training.validate_every:
        return ()
    check_validation(cfg)
    check_test_sets(cfg)
    e = cfg.evaluation
    return tuple(list_pairs(str(e.source_hq), e.source_lq, e.source_template, cfg.training.validation_images))


def _names(pair: PairFile) -> str:
    """Of both images: which belongs to which is a matter of names and of `source.lq_template`."""
    return pair.id if pair.lq is None else f"{pair.id} {PurePosixPath(pair.lq).name}"


def checkpoint_name(step: int) -> str:
    """The folder of a checkpoint, beside the snapshot."""
    return f"step_{step:08d}"

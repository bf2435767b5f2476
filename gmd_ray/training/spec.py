"""The inputs and settings of one fine-tune, collected before any worker starts.

This module does not import torch: the driver and Ray Train's controller import it, and torch takes seconds.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from gmd_ray.config import Config
from gmd_ray.config.places import above, below
from gmd_ray.config.secrets import digested_values
from gmd_ray.config.validate import check_test_sets, check_validation
from gmd_ray.errors import ConfigError, nearest
from gmd_ray.images.sets.pairs import PairFile
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.storage import absolute, is_remote, open_filesystem
from gmd_ray.training.data.targets import AcceptedPairs, accepted_pairs
from gmd_ray.training.digests import digest, digest_of_files, digest_of_path
from gmd_ray.weights import is_model_folder, is_stored, stored_model

NAMES = ("adapted", "source_only", "median", "supervised", "pretrained")

NO_EFFECT = {
    "num_workers", "min_workers", "use_gpu", "cpus_per_worker", "labels", "cache_gb", "channels_last",
    "compile", "accumulate", "strategy", "checkpoint_every", "keep_checkpoints", "log_every", "max_failures",
    "max_preemption_failures", "validate_every", "validation_images", "export", "supervised_hq", "perceptual_weights",
}  # fmt: skip
"""Fields of `training` that change the weights by rounding at most, or that `TrainingSpec.settings` handles itself.

Two things still depend on the number of workers and on `accumulate`: stochastic depth (SwinIR's DropPath, in `pretrain`
alone), since each worker draws the skipped branches of its own part of the batch; and batch normalisation, whose
statistics are those of one part of the batch, with rank 0's buffers in the checkpoint.
"""


@dataclass(frozen=True)
class TrainingSpec:
    """Everything that a worker needs to train; Ray Train pickles it to each of them."""

    name: str
    cfg: Config
    """The settings, with the `training.source_ratio` of this fine-tune and an absolute `student.path`."""
    seed: int
    source: tuple[PairFile, ...]
    """The source pairs; empty if the ratio is 0."""
    target: AcceptedPairs | None
    """The accepted pairs; None if the ratio is 1."""
    validation: tuple[PairFile, ...]
    """Held-out source pairs; empty if `training.validate_every` is 0."""
    directory: str
    """The directory of the fine-tune, a path or URL."""
    student: str
    """The path or URL that the fine-tuned student is written to."""

    def settings(self) -> dict[str, Any]:
        """Everything that determines the weights, as flat JSON values; a resumed fine-tune must have the same."""
        fields = dataclasses.asdict(self.cfg.training)
        values = {f"training.{key}": value for key, value in fields.items() if key not in NO_EFFECT}
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
            values["source.lq"] = self.cfg.source.lq is not None  # the folder may move, the names may not change
            values["source pairs"] = digest(_names(pair) for pair in self.source)
        if self.target:
            values["accepted pairs"] = self.target.digest
            if self.target.truths:
                values["ground truth"] = digest_of_files(self.target.truths)
        return {key: digested_values(value) for key, value in values.items()}

    def without_listing(self) -> TrainingSpec:
        """A copy whose pairs lack `PairFile.files`, which only the driver needs; it halves what travels to a worker."""

        def bare(pairs: tuple[PairFile, ...]) -> tuple[PairFile, ...]:
            return tuple(dataclasses.replace(pair, files=()) for pair in pairs)

        return dataclasses.replace(self, source=bare(self.source), validation=bare(self.validation))


@dataclass(frozen=True)
class Finetuned:
    """The result of a finished fine-tune."""

    path: str
    """Path or URL of the fine-tuned student, in the file layout of `student.path`."""
    steps: int
    final_loss: float
    """Mean loss over the last logged interval."""
    seconds: float
    """Wall time of the call that finished the training."""
    resumed_from: int | None
    """Step of the checkpoint that this call resumed from; None if it started at step 0."""


def finetuned_path(cfg: Config, name: str, seed: int | None = None) -> str:
    """The path or URL that `finetune(cfg, name, seed=seed)` writes the student to.

    Raises:
        ConfigError: `name` is unknown, or `student.path` is not set.
        GmdError: `student.path` is a URL that cannot be listed, and this node has no copy.
    """
    if name not in NAMES:
        raise ConfigError(f"no fine-tune is called {name!r}; {nearest(name, NAMES)}")
    if cfg.student.path is None:
        raise ConfigError("student.path is not set: give the checkpoint file of the restorer to adapt")
    folder = name if seed is None else f"{name}-seed{seed}"
    path = PurePosixPath(stored_model(cfg.student.path).name if is_stored(cfg.student.path) else cfg.student.path)
    # A directory may have a dot in its name: ldm-1.3b.
    suffix = "" if is_model_folder(cfg.student.path) else path.suffix
    if path.name.endswith(".pth.tar"):  # an older PyTorch convention
        suffix = ".pth.tar"
    out = cfg.out if is_remote(cfg.out) else open_filesystem(cfg.out)[1]
    return below(out, f"finetune/{folder}/student{suffix}")


def make_spec(
    cfg: Config, name: str, seed: int | None, *, targets: bool = True, inputs: RunInputs | None = None
) -> TrainingSpec:
    """Collect the source pairs and the accepted pairs of a fine-tune, and check that there are any.

    Args:
        targets: read the accepted pairs. A spec without them can be compared with a begun fine-tune, not trained.
        inputs: folder listings that the run shares; the folders are listed here if it is None.

    Raises:
        ConfigError: the settings contradict each other, or one is missing.
        DataError: no source pairs, no finished pair store, or no accepted pairs.
    """
    inputs = inputs or RunInputs()
    student = finetuned_path(cfg, name, seed)
    parts = cfg.training.num_workers * cfg.training.accumulate
    if cfg.training.batch_size < parts:
        each = f" x training.accumulate={cfg.training.accumulate}" if cfg.training.accumulate > 1 else ""
        raise ConfigError(
            f"training.batch_size={cfg.training.batch_size} is the global batch, and must be at least "
            f"training.num_workers={cfg.training.num_workers}{each}"
        )
    ratio = 1.0 if name in ("source_only", "pretrained") else cfg.training.source_ratio
    if not 0 <= ratio <= 1:
        raise ConfigError(f"training.source_ratio={ratio}: must be between 0 and 1")
    source: list[PairFile] = []
    if ratio > 0:
        if cfg.source.hq is None or (cfg.source.lq is None and cfg.source.degradation is None):
            raise ConfigError("source.hq with source.lq or source.degradation is needed at training.source_ratio > 0")
        source = inputs.pairs(cfg.source.hq, cfg.source.lq, cfg.source.lq_template, cfg.source.limit)
    return TrainingSpec(
        name=name,
        cfg=dataclasses.replace(
            cfg,
            training=dataclasses.replace(cfg.training, source_ratio=ratio),
            student=dataclasses.replace(cfg.student, path=absolute(str(cfg.student.path))),
        ),
        seed=cfg.seed if seed is None else seed,
        source=tuple(source),
        target=accepted_pairs(cfg, name, inputs) if ratio < 1 and targets else None,
        validation=_validation(cfg, inputs),
        directory=above(student),
        student=student,
    )


def _validation(cfg: Config, inputs: RunInputs) -> tuple[PairFile, ...]:
    if not cfg.training.validate_every:
        return ()
    check_validation(cfg)
    check_test_sets(cfg)
    e = cfg.evaluation
    return tuple(inputs.pairs(str(e.source_hq), e.source_lq, e.source_template, cfg.training.validation_images))


def _names(pair: PairFile) -> str:
    """The names of a pair's images, which together with `source.lq_template` decide what is paired with what."""
    return pair.id if pair.lq is None else f"{pair.id} {PurePosixPath(pair.lq).name}"

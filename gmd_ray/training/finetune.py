"""`finetune`: one call that starts, resumes or skips a fine-tune, depending on what its directory holds."""

from __future__ import annotations

import dataclasses
import logging
import math
import time

from gmd_ray.config import Config
from gmd_ray.config.places import below, name_of
from gmd_ray.config.secrets import redact
from gmd_ray.errors import DataError
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.progress import NullRecorder, Recorder
from gmd_ray.storage import is_file, is_folder, local_copy
from gmd_ray.training.checkpoints import settle_checkpoints
from gmd_ray.training.digests import digest_of_path
from gmd_ray.training.resume import check_settings
from gmd_ray.training.run_files import CURVE, DONE, read_curve, read_json, write_json
from gmd_ray.training.spec import Finetuned, TrainingSpec, make_spec

_DIGEST = "student"
"""Key in `finetuned.json`: the digest of the student file as it was written."""

log = logging.getLogger("gmd_ray.training")


def finetune(
    cfg: Config,
    name: str,
    recorder: Recorder | None = None,
    *,
    seed: int | None = None,
    inputs: RunInputs | None = None,
    directory: str | None = None,
) -> Finetuned:
    """Fine-tune the student on source pairs and accepted pairs, with Ray Train.

    Ray must be initialised, unless `ray.enabled=false`: then training runs in this process, from its first step.

    Calling it again returns the result if training has finished, and otherwise resumes from the last intact checkpoint.
    Ctrl-C and SIGTERM end the workers and raise `KeyboardInterrupt` and `SystemExit`.

    Args:
        cfg: the settings; accepted pairs are read from `<out>/pairs` at `scorer.threshold`.
        name: `adapted`; or a control: `source_only` (the same steps on source pairs alone), `median` (the same pairs
            with a 3x3 median of `restored` for a target), `supervised` (the same photos with their ground truth from
            `training.supervised_hq`: the upper bound). `pretrained` trains on source pairs alone with the stochastic
            depth of the architecture, see `gmd_ray.training.pretrain`.
        recorder: gets `loss`, `lr`, `grad_norm`, `images_per_s`, `data_wait` (share of time spent waiting for data),
            `n_source` and `n_target`, `loss_source` and `loss_target` (of the crops of each, unweighted), each the
            mean over the last `training.log_every` steps, which also is how often; and `val_psnr` at each validation.
            It is pickled to Ray Train's controller.
        seed: seed of sample order, crops and degradations. With a seed the output directory is
            `<out>/finetune/<name>-seed<seed>`; None takes `cfg.seed` and `<out>/finetune/<name>`.
        inputs: folder listings that the run shares; the folders are listed here if it is None.
        directory: the directory to write to, in place of one below `<out>/finetune`.

    Raises:
        ConfigError: contradictory settings, or more workers than the cluster can ever hold.
        DataError: no source pairs, no finished pair store, no accepted pairs, an unusable image, no intact checkpoint,
            or a finished student file that has changed since it was written.
        ModelError: the student cannot be loaded or saved.
        ResumeMismatchError: the output was begun with other settings, pairs, source images or student weights.
        GmdError: the loss is not finite, workers died more than `training.max_failures` times, or their nodes were
            taken away more than `training.max_preemption_failures` times.
    """
    started = time.monotonic()
    recorder = NullRecorder() if recorder is None else recorder
    spec = make_spec(cfg, name, seed, inputs=inputs)
    if directory is not None:
        spec = dataclasses.replace(spec, directory=directory, student=below(directory, name_of(spec.student)))
    settings = check_settings(spec)
    done_path = below(spec.directory, DONE)
    label = f"finetune {name_of(spec.directory)}"
    if is_file(done_path) and (is_file(spec.student) or is_folder(spec.student)):
        log.info("%s: already finished, %s", label, spec.student)
        return _finished(spec, done_path)
    settle_checkpoints(spec, label)
    counts = {"source pairs": len(spec.source), "accepted pairs": len(spec.target.ids) if spec.target else 0}
    recorder.params(settings | {"counts": counts})

    if cfg.ray.enabled:
        from gmd_ray.training.driver import fit

        resumed_from = fit(spec, label, recorder)
    else:
        from gmd_ray.training.in_process import fit_in_process

        resumed_from = fit_in_process(spec)

    points = read_curve(below(spec.directory, CURVE))
    finetuned = Finetuned(
        path=spec.student,
        steps=spec.cfg.training.steps,
        final_loss=points[-1]["loss"] if points else math.nan,
        seconds=time.monotonic() - started,
        resumed_from=resumed_from,
    )
    document = dataclasses.asdict(finetuned) | {"path": redact(spec.student)}  # no later run reads the path
    write_json(done_path, document | {_DIGEST: _digest_of_student(spec)})
    recorder.artifact(spec.student)
    return finetuned


def _finished(spec: TrainingSpec, document: str) -> Finetuned:
    """Read the result of an earlier run.

    Raises:
        DataError: the student file is not the one that this run wrote.
    """
    result = read_json(document)
    written = result.pop(_DIGEST, None)
    if written is not None and _digest_of_student(spec) != written:
        raise DataError(
            f"{spec.student}: not as this fine-tune wrote it (incomplete or replaced); remove it, and the same command "
            f"writes it again from the last checkpoint"
        )
    return Finetuned(**result | {"path": spec.student})


def _digest_of_student(spec: TrainingSpec) -> str:
    """The digest of the fine-tuned student as it lies in its place now, not of an earlier copy on this node."""
    with local_copy(spec.student) as copy:
        return digest_of_path(copy)

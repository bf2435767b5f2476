"""Stage 2 as its callers see it: one call that trains, or goes on training, or finds that there is nothing to do."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from pathlib import Path

from gmd_ray.config import Config
from gmd_ray.config.secrets import redact
from gmd_ray.errors import DataError
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.progress import NullRecorder, Recorder
from gmd_ray.training.checkpoints import settle_checkpoints
from gmd_ray.training.digests import digest_of_path
from gmd_ray.training.resume import check_settings
from gmd_ray.training.run_files import CURVE, DONE, read_curve, read_json, write_json
from gmd_ray.training.spec import Finetuned, TrainingSpec, make_spec

_DIGEST = "student"
"""In a finished fine-tune's document: the digest of the student as it was written."""

log = logging.getLogger("gmd_ray.training")


def finetune(
    cfg: Config,
    name: str,
    recorder: Recorder | None = None,
    *,
    seed: int | None = None,
    inputs: RunInputs | None = None,
) -> Finetuned:
    """Fine-tune the student on source pairs and accepted pairs, with Ray Train.

    The same call again returns what is finished, and otherwise goes on from the last whole checkpoint. Ctrl-C and
    SIGTERM end the workers and raise `KeyboardInterrupt` and `SystemExit`.

    Args:
        cfg: the pairs are read from `<out>/pairs` at `scorer.threshold`.
        name: `adapted`; or a control: `source_only` (the same steps on source pairs alone), `median` (the same pairs
            with a 3x3 median of `restored` for a target), `supervised` (the same photos with their ground truth from
            `training.supervised_hq`: the upper bound). `pretrained` trains on source pairs alone with the stochastic
            depth of the architecture, see `gmd_ray.training.pretrain`.
        recorder: gets `loss`, `lr`, `grad_norm`, `images_per_s`, `data_wait` (share of time spent waiting for data),
            `n_source` and `n_target`, `loss_source` and `loss_target` (of the crops of each, unweighted), each the
            mean over the last `training.log_every` steps, which also is how often; and `val_psnr` at each validation.
            It is pickled to Ray Train's controller.
        seed: of sample order, crops and degradations; one that is given has an output directory of its own,
            `<out>/finetune/<name>-seed<seed>`. Default: `cfg.seed`, in `<out>/finetune/<name>`.
        inputs: the listings that the run shares; by default new ones.

    Raises:
        ConfigError: settings that cannot be met, workers that the cluster can never hold among them.
        DataError: no source pairs, no finished pair store, no accepted pairs, an image that cannot be used, no
            checkpoint that is whole, or a finished student that is not as it was written.
        ModelError: a student that cannot be loaded or saved.
        ResumeMismatchError: the output was begun with other settings, pairs, source images or student weights.
        GmdError: the loss is not finite, or workers died more than `training.max_failures` times.
    """
    started = time.monotonic()
    recorder = NullRecorder() if recorder is None else recorder
    spec = make_spec(cfg, name, seed, inputs=inputs)
    settings = check_settings(spec)
    done_path = Path(spec.directory, DONE)
    label = f"finetune {Path(spec.directory).name}"
    if done_path.is_file() and Path(spec.student).exists():
        log.info("%s: finished before, %s", label, spec.student)
        return _finished(spec, done_path)
    settle_checkpoints(spec, label)
    counts = {"source pairs": len(spec.source), "accepted pairs": len(spec.target.ids) if spec.target else 0}
    recorder.params(settings | {"counts": counts})

    from gmd_ray.training.driver import fit

    resumed_from = fit(spec, label, recorder)

    points = read_curve(Path(spec.directory, CURVE))
    finetuned = Finetuned(
        path=spec.student,
        steps=spec.cfg.training.steps,
        final_loss=points[-1]["loss"] if points else math.nan,
        seconds=time.monotonic() - started,
        resumed_from=resumed_from,
    )
    document = dataclasses.asdict(finetuned) | {"path": redact(spec.student)}  # the path is read by no later run
    write_json(done_path, document | {_DIGEST: digest_of_path(spec.student)})
    recorder.artifact(spec.student)
    return finetuned


def _finished(spec: TrainingSpec, document: Path) -> Finetuned:
    """What an earlier run came to.

    Raises:
        DataError: the student is not the file that it wrote.
    """
    found = read_json(document)
    written = found.pop(_DIGEST, None)
    if written is not None and digest_of_path(spec.student) != written:
        raise DataError(
            f"{spec.student}: not as this fine-tune wrote it, torn or replaced; remove it, and the same command writes "
            f"it again from the last checkpoint"
        )
    return Finetuned(**found | {"path": spec.student})

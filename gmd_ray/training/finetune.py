"""Stage 2 as its callers see it: one call that trains, or goes on training, or finds that there is nothing to do."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from pathlib import Path

from gmd_ray.config import Config
from gmd_ray.progress import NullRecorder, Recorder
from gmd_ray.training.documents import read_json, write_json
from gmd_ray.training.plan import CURVE, DONE, Finetuned, make_plan
from gmd_ray.training.resume import check_settings

log = logging.getLogger("gmd_ray.training")


def finetune(cfg: Config, name: str, recorder: Recorder | None = None, *, seed: int | None = None) -> Finetuned:
    """Fine-tune the student on source pairs and accepted pairs, with Ray Train.

    The same call again returns what is finished, and otherwise goes on from the last checkpoint.

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

    Raises:
        ConfigError: settings that cannot be met.
        DataError: no source pairs, no finished pair store, no accepted pairs, or an image that cannot be used.
        ModelError: a student that cannot be loaded or saved.
        ResumeMismatchError: the output was begun with other settings, pairs or student weights.
        GmdError: the loss is not finite, or workers died more than `training.max_failures` times.
    """
    started = time.monotonic()
    recorder = NullRecorder() if recorder is None else recorder
    plan = make_plan(cfg, name, seed)
    settings = check_settings(plan)
    done_path = Path(plan.directory, DONE)
    label = f"finetune {Path(plan.directory).name}"
    if done_path.is_file() and Path(plan.student).exists():
        log.info("%s: finished before, %s", label, plan.student)
        return Finetuned(**read_json(done_path) | {"path": plan.student})
    counts = {"source pairs": len(plan.source), "accepted pairs": len(plan.target.ids) if plan.target else 0}
    recorder.params(settings | {"counts": counts})

    from gmd_ray.training.curve import read_curve
    from gmd_ray.training.driver import fit

    resumed_from = fit(plan, label, recorder)

    points = read_curve(Path(plan.directory, CURVE))
    finetuned = Finetuned(
        path=plan.student,
        steps=plan.cfg.training.steps,
        final_loss=points[-1]["loss"] if points else math.nan,
        seconds=time.monotonic() - started,
        resumed_from=resumed_from,
    )
    write_json(done_path, dataclasses.asdict(finetuned))
    recorder.artifact(plan.student)
    return finetuned

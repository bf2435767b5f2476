"""`adapt`: the whole run, in order: generate, fine-tune, evaluate, register."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from gmd_ray.config import Config
from gmd_ray.config.load import check_out, require, resolved
from gmd_ray.ray_utils.session import ray_session
from gmd_ray.ready import ready

log = logging.getLogger("gmd_ray")


@dataclass(frozen=True)
class Adapted:
    """The result of a run; its files are below `out`."""

    student: str
    """Path or URL of the adapted checkpoint, in the file layout of `student.path`."""
    table: str
    """The figures of the evaluation, in Markdown."""
    report: str
    """Path or URL of the report, a self-contained HTML file."""
    version: str | None
    """Version of the registered model; None without tracking."""
    promoted: bool
    reasons: list[str]
    """One line per promotion gate, with its verdict."""
    unsent: str = ""
    """Entries that MLflow has missed and gets later, in words; empty if it has everything."""


def adapt(cfg: Config) -> Adapted:
    """Adapt `student.path` to the photos in `target.path`. The same call again continues where the last one stopped.

    Raises:
        GmdError: an error that the user can fix, in one line. If the registry fails, its `TrackingError` is raised
            after the report has been written.
    """
    require(cfg, "adapt")
    check_out(cfg, "adapt")
    inputs = ready(cfg, "adapt", save=False)

    # These imports take seconds, so that errors in the settings are reported before them.
    from gmd_ray.evaluation import evaluate, markdown
    from gmd_ray.generation import generate
    from gmd_ray.planning.plan import keep_prediction
    from gmd_ray.report import write_report
    from gmd_ray.tracking import (
        Decision,
        TrackingError,
        forget_registration,
        keep_registration,
        promote,
        record_outcome,
        register,
        start_run,
    )
    from gmd_ray.training import finetune

    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run:
        # Stages 0, 1, 1b: restore, project and score every target photo.
        with run.stage("generate") as recorder:
            keep_prediction(cfg, inputs)
            totals = generate(cfg, recorder, inputs=inputs)
        log.info("%s", totals)

        # Stage 2: fine-tune the student on source pairs and accepted pairs; then the controls that it must beat.
        students = {"baseline": str(cfg.student.path)}
        for name in ["adapted", *cfg.controls]:
            with run.stage(f"finetune-{name}") as recorder:
                students[name] = str(finetune(cfg, name, recorder, inputs=inputs).path)

        # Stage 3: measure all students on held-out target and source images.
        with run.stage("evaluate") as recorder:
            evaluation = evaluate(cfg, students, recorder, inputs=inputs)
        record_outcome(cfg, run, evaluation)

        # Register a model version, and promote it to champion if every promotion gate holds. If the registry fails, the
        # hours of work before it still end in a report, which names the failure.
        version, failure = None, None
        try:
            version = register(cfg, run, students["adapted"], evaluation)
            decision = promote(cfg, run, version, evaluation)
            forget_registration(cfg)
        except TrackingError as error:
            keep_registration(cfg, students["adapted"])
            decision, failure = Decision(False, [f"refused: {error}"], version), error
        report = write_report(cfg, evaluation, run, decision=decision, inputs=inputs)
        if failure is not None:
            log.error(
                "the registry failed, so that nothing was promoted; everything else is done: %s; the same command, or "
                "`gmd-ray sync`, registers the student later, and computes nothing anew",
                report,
            )
            raise failure
    return Adapted(
        student=students["adapted"],
        table=markdown(evaluation),
        report=str(report),
        version=version,
        promoted=decision.promoted,
        reasons=decision.reasons,
        unsent=run.unsent,
    )

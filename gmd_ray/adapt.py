"""The whole run, read top to bottom: generate, fine-tune, evaluate, register."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from gmd_ray.config import Config
from gmd_ray.config.load import check_out, require, resolved
from gmd_ray.ray_utils.session import ray_session
from gmd_ray.ready import ready, target_photos

log = logging.getLogger("gmd_ray")


@dataclass(frozen=True)
class Adapted:
    """What a run leaves, below `out`."""

    student: str
    """The adapted checkpoint, in the layout of `student.path`."""
    table: str
    """Markdown."""
    report: str
    """Self-contained HTML."""
    version: str | None
    """Of the registered model; None without tracking."""
    promoted: bool
    reasons: list[str]
    """What each gate said."""


def adapt(cfg: Config) -> Adapted:
    """Adapt `student.path` to the photos in `target.path`; the same call again takes up where the last one stopped.

    Raises:
        GmdError: whatever a user can mend, in one line. A `TrackingError` of the registry comes after the report.
    """
    require(cfg, "adapt")
    check_out(cfg, files=True)
    listed = ready(cfg, "adapt", save=False)

    # Slow imports: errors of the settings are reported before paying for them.
    from gmd_ray.evaluation import evaluate, markdown, write_report
    from gmd_ray.generation import generate
    from gmd_ray.tracking import Decision, TrackingError, promote, register, start_run
    from gmd_ray.training import finetune

    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run:
        # Stages 0, 1, 1b: restore, project and score every target photo.
        with run.stage("generate") as recorder:
            totals = generate(cfg, recorder, files=target_photos(listed))
        log.info("%s", totals)

        # Stage 2: the student again, on source pairs and accepted pairs; then the controls it must beat.
        students = {"baseline": str(cfg.student.path)}
        for name in ["adapted", *cfg.controls]:
            with run.stage(f"finetune-{name}") as recorder:
                students[name] = str(finetune(cfg, name, recorder).path)

        # Held-out target and source images, all students side by side.
        with run.stage("evaluate") as recorder:
            evaluation = evaluate(cfg, students, recorder)

        # A model version; champion only if every gate holds. Without a registry that answers, the hours before this
        # still end in a report, which says so.
        version, failure = None, None
        try:
            version = register(cfg, run, students["adapted"], evaluation)
            decision = promote(cfg, run, version, evaluation)
        except TrackingError as error:
            decision, failure = Decision(False, [f"refused: {error}"], version), error
        report = write_report(cfg, evaluation, run, decision=decision)
        if failure is not None:
            log.error("nothing was promoted, all else is done: %s", report)
            raise failure
        return Adapted(
            student=students["adapted"],
            table=markdown(evaluation),
            report=str(report),
            version=version,
            promoted=decision.promoted,
            reasons=decision.reasons,
        )

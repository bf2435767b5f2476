"""Settings of the stream that makes the pairs, Stages 0 to 1b."""

from __future__ import annotations

from dataclasses import dataclass

from gmd_ray.config.sections.setting import setting


@dataclass
class GenerationConfig:
    """Stages 0, 1 and 1b as one stream: restore, project and score every target photo."""

    rows_per_block: int = setting(16, "Number of images that travel, are written and are retried together.", ge=1)
    keep_restored: bool = setting(
        True, "Write the output of Stage 0 beside the pseudo-target; the report and the controls need it."
    )
    retry_failed: bool = setting(False, "Try the rows again that an earlier run left as failed.")
    max_attempts: int = setting(
        2, "Number of times that a row may be begun before it is given up as one that kills its worker.", ge=1
    )
    grace_s: float = setting(
        60.0,
        "Seconds for which a run asked to stop (SIGTERM) finishes and writes what is in flight. `ray job stop` kills "
        "the job after RAY_JOB_STOP_WAIT_TIME_S seconds, 3 by default: raise that variable in the job's runtime "
        "environment too.",
        ge=0,
    )
    batch_timeout_s: float | None = setting(
        None,
        "Seconds that a batch may take in a stage. After them its worker is ended and its images are tried alone; one "
        "that hangs max_attempts times is a failed row. null: no_progress_timeout_s over max_attempts + 2, so that "
        "the image is given up before the run, and for each image at least no_progress_timeout_s over rows_per_block. "
        "0: no bound.",
        ge=0,
    )
    no_progress_timeout_s: int = setting(
        1800,
        "Seconds without progress after which the run fails. Progress is a whole block: set this above the time to "
        "load the models plus rows_per_block times the seconds of the slowest image.",
        ge=1,
    )

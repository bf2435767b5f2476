"""Settings of the evaluation, and of the tracking and registration of what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gmd_ray.config.sections import checks
from gmd_ray.config.sections.models import PoolConfig, device_setting
from gmd_ray.config.sections.setting import section, setting

TEST_SETS = ("target", "source")


@dataclass
class EvaluationConfig:
    """Held-out test sets: the target, with ground truth or without, and the source."""

    target_lq: str | None = setting(None, "Folder or URL of held-out target photos.", published=True)
    target_hq: str | None = setting(
        None, "Their ground truth; without it, no-reference metrics alone are reported.", published=True
    )
    target_template: str = setting(
        "{}", "Relative stem of the LQ file for the stem of an HQ file.", check=checks.template
    )
    source_hq: str | None = setting(None, "Folder or URL of the ground truth of the source test set.", published=True)
    source_lq: str | None = setting(
        None,
        "Folder or URL of its inputs; null degrades `source_hq` by `source.degradation` with a fixed seed.",
        published=True,
    )
    source_template: str = setting(
        "{}", "Relative stem of the LQ file for the stem of an HQ file.", check=checks.template
    )
    limit: int | None = setting(None, "Use only the first n images of each set; null uses all.", ge=1)
    metrics: list[str] = setting(
        ["psnr", "ssim", "lpips", "nima", "niqe", "brisque"],
        "Metrics by the names that `gmd-ray ls metrics` gives them.",
        unique=True,
    )
    weights: dict[str, str] = setting({}, "Weight files of metrics, or their URLs, by the metric's name.", path=True)
    weights_dir: str | None = setting(
        None,
        "Directory or URL that `gmd-ray fetch --to` filled, for every metric without a file of its own; null takes "
        "torch's hub directory.",
        path=True,
    )
    crop_border: int = setting(0, "Number of pixels cut from each side before full-reference metrics.", ge=0)
    device: str = device_setting()
    pool: PoolConfig = section(PoolConfig)
    online: Any = setting(
        False,
        "Students whose output the teacher also projects, at test time: a list of their names, or true for all. Each "
        "becomes a row of the table, such as `baseline+teacher`; every actor of the pool then holds the teacher too.",
        check=checks.students,
        kind="true, false, or list of texts",
    )
    methods: dict[str, str] = setting(
        {},
        "Further rows of the table, by name. model:CHECKPOINT is another student, in any layout that spandrel loads. "
        "folder:PATH holds ready outputs, of any program, paired with the target photos by stem; folders `target` and "
        "`source` in it hold those for each test set. online:TEACHER is the baseline followed by a "
        "teacher at test time: a name that `teacher.preset` takes, a model directory, or NAME@DIRECTORY.",
        check=checks.methods,
        kind="mapping of names to model:CHECKPOINT, folder:PATH or online:TEACHER",
    )
    align: str = setting(
        "none",
        "ecc aligns each output to the ground truth before full-reference metrics, as the published figures for "
        "RealBlur-J are measured: a homography by the enhanced correlation coefficient, one factor of brightness, and "
        "PSNR and SSIM over the pixels that both have.",
        choices=("none", "ecc"),
    )
    published: str | None = setting(
        None,
        "Rows of the paper to show beside ours, marked as published: a table and a data set, such as 3/REDS.",
    )
    allow_overlap: bool = setting(
        False,
        "Measure on photos that are also in `target.path`. They are refused otherwise, by the bytes of the files, "
        "since a figure on photos that were learned from says little of other photos.",
    )
    remark: str | None = setting(
        None, "Sentence for the head of report.html: what the figures say, and what they do not say."
    )
    report_images: int = setting(12, "Number of rows of pictures of each kind in report.html.", ge=0)
    pairs_hq: str | None = setting(
        None,
        "Folder or URL of the ground truth of the target images if it exists: for the report alone, never for "
        "training.",
        published=True,
    )


@dataclass
class PromotionGate:
    """One condition of a promotion: the mean of the candidate against that of a reference, on one test set."""

    metric: str = setting("psnr", "Name of the metric, one of `evaluation.metrics`.")
    dataset: str = setting("target", "Test set.", choices=TEST_SETS)
    against: str = setting(
        "baseline",
        "Reference: baseline, a control, lq (the untouched photo), a row of `evaluation.methods`, or champion, the "
        "version that would be replaced (which the candidate must not fall behind in any case).",
    )
    min_gain: float = setting(
        0.0,
        "Smallest improvement of the mean, in the direction of the metric; a negative one allows a loss. For a "
        "no-reference metric on images with ground truth it is the distance to the truth's value that shrinks.",
        gt=float("-inf"),
    )


@dataclass
class TrackingConfig:
    """MLflow runs and the model registry."""

    uri: str | None = setting(
        None,
        "URI of the server or database; null takes MLFLOW_TRACKING_URI from the environment, "
        "else an sqlite file below `out`.",
    )
    experiment: str = setting("gmd_ray", "Name of the MLflow experiment.")
    model: str = setting("gmd-student", "Name of the registered model.")
    gates: list[PromotionGate] = setting(
        [PromotionGate(), PromotionGate(dataset="source", min_gain=-0.2)],
        "Conditions that must all hold before the alias `champion` moves. A student that is worse than the present "
        "champion on the same test set, or cannot be compared with it, is refused even then: on target photos if it is "
        "worse at all, on source pairs if it loses more than its condition allows. A condition with "
        "`against: champion` decides for its own figure. By default the target must not lose, and the source may lose "
        "0.2 dB.",
    )
    require_commercial_teacher: bool = setting(
        False,
        "Promote no student unless its teacher's licence lets a company use it (`gmd-ray ls teachers`): refused are "
        "teachers under a non-commercial licence, and those of which nothing is known. `teacher.licence=commercial` "
        "says that you have read it, or have the makers' permission.",
    )
    system_metrics_interval_s: float = setting(
        30.0,
        "Seconds between two samples of the driver's CPU, memory, disk and network, for MLflow's page of system "
        "metrics; 0 takes none. GPUs are among them where nvidia-ml-py is installed.",
        ge=0,
    )
    enabled: bool = setting(True, "Track runs and register models.")

"""All settings of a run.

`paper` in a description marks a value that the paper gives; every other value is this project's choice.
"""

from __future__ import annotations

from dataclasses import dataclass

from gmd_ray.config.sections.data import DataConfig, SourceConfig, TargetConfig
from gmd_ray.config.sections.evaluation import EvaluationConfig, TrackingConfig
from gmd_ray.config.sections.generation import GenerationConfig
from gmd_ray.config.sections.models import ScorerConfig, StudentConfig
from gmd_ray.config.sections.setting import section, setting
from gmd_ray.config.sections.teacher import TeacherConfig
from gmd_ray.config.sections.training import PretrainConfig, TrainingConfig

CONTROLS = ("source_only", "median", "supervised")


@dataclass
class PlanConfig:
    """The fleet that `gmd-ray plan` plans for, its speed and its prices. Nothing here changes a run."""

    accelerators: int | None = setting(
        None, "Number of accelerators; null is what `teacher.pool.max` replicas take.", ge=1
    )
    tflops: float | None = setting(
        None,
        "TFLOP/s that one accelerator reaches in the teacher; without it, hours come from `--probe` alone. Published "
        "code reports 310 (eager) to 484 (compiled) on an H100 in bfloat16.",
        gt=0,
    )
    scale: int | None = setting(None, "Enlargement by the student; null is what its checkpoint says.", ge=1)
    price_per_hour: float | None = setting(None, "Price of one accelerator for an hour.", ge=0)
    storage_price: float | None = setting(None, "Price of a GB of storage for a month.", ge=0)
    storage_months: float = setting(1.0, "Number of months for which the pairs are kept.", ge=0)
    currency: str = setting("USD", "Currency of the prices, as it is printed.")


@dataclass
class RayConfig:
    """The Ray session of a run."""

    enabled: bool = setting(
        True,
        "false: `generate`, `finetune`, `pretrain` and `ablate` work in the process of the command, one thing after "
        "another, for a debugger or a small machine. The models share that process, a crash or hang of one ends the "
        "run, and a fine-tune that was stopped starts anew.",
    )
    address: str | None = setting(
        None,
        "auto or host:port joins a cluster; null joins the cluster of the submitted job, or else starts a private "
        "local one.",
    )
    num_cpus: int | None = setting(
        None,
        "Logical CPUs of a private local cluster; null is what the machine has, or what the smallest pools need if "
        "that is more.",
        ge=1,
    )
    object_store_memory: int | None = setting(
        None,
        "Bytes of the object store of a private local cluster, at least Ray's own minimum of 75 MiB; null is Ray's "
        "choice.",
        ge=78_643_200,
    )


@dataclass
class Config:
    """A whole run."""

    out: str = setting("runs/default", "Run directory: local path or URL.")
    seed: int = setting(0, "Seed of every random draw.", gt=float("-inf"))
    log_interval_s: float = setting(10.0, "Seconds between progress lines in the log of a job.", gt=0)
    prepare: str | None = setting(
        None,
        "Data made before the run under `<out>/world`: `photos` shoots the demo's photographs with a simulated camera, "
        "`toy` draws shapes.",
        choices=("photos", "toy"),
    )
    controls: list[str] = setting(
        [],
        "Fine-tunes to run beside the adapted one for comparison: source_only; median, on the `restored` images "
        "through a median filter; supervised, on the ground truth of the target from training.supervised_hq, which is "
        "the upper bound.",
        choices=CONTROLS,
        unique=True,
    )
    data: DataConfig = section(DataConfig)
    source: SourceConfig = section(SourceConfig)
    target: TargetConfig = section(TargetConfig)
    student: StudentConfig = section(StudentConfig)
    teacher: TeacherConfig = section(TeacherConfig)
    scorer: ScorerConfig = section(ScorerConfig)
    generation: GenerationConfig = section(GenerationConfig)
    training: TrainingConfig = section(TrainingConfig)
    pretrain: PretrainConfig = section(PretrainConfig)
    evaluation: EvaluationConfig = section(EvaluationConfig)
    tracking: TrackingConfig = section(TrackingConfig)
    plan: PlanConfig = section(PlanConfig)
    ray: RayConfig = section(RayConfig)

"""Every setting of a run, typed, with its unit and its reason.

`paper` marks a value the paper gives; everything else is this project's choice (restoration.md 0, 1.5; teacher.md 0).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gmd_ray.config.data import DataConfig, SourceConfig, TargetConfig
from gmd_ray.config.models import ScorerConfig, StudentConfig
from gmd_ray.config.plan import PlanConfig
from gmd_ray.config.stages import EvaluationConfig, GenerationConfig, PretrainConfig, TrainingConfig
from gmd_ray.config.teacher import TeacherConfig


@dataclass
class GateConfig:
    """One promotion gate: the candidate's mean against a reference, on one test set."""

    metric: str = "psnr"
    dataset: str = "target"
    """target or source."""
    against: str = "baseline"
    """baseline, champion (the version that would be replaced; its figures count without a gate too), or a control."""
    min_gain: float = 0.0
    """Smallest improvement, in the metric's own direction; negative allows a loss."""


@dataclass
class TrackingConfig:
    """MLflow runs and the model registry."""

    uri: str | None = None
    """Server or database URI; default sqlite under `out`."""
    experiment: str = "gmd_ray"
    model: str = "gmd-student"
    """Registered model name."""
    gates: list[GateConfig] = field(
        default_factory=lambda: [
            GateConfig(),
            GateConfig(dataset="source", min_gain=-0.2),
        ]
    )
    enabled: bool = True


@dataclass
class RayConfig:
    """The Ray session of a run that finds no cluster."""

    enabled: bool = True
    """false: `generate` works in the command's own process, one block after another, for a debugger. Models then share
    that process, and where one crashes or hangs the run ends."""
    address: str | None = None
    """auto or host:port to join a cluster; default: the job's own, else a private local one."""
    num_cpus: int | None = None
    """Of a private local cluster; default: what the machine has, or what the smallest pools need where that is more."""
    object_store_memory: int | None = None
    """Bytes, of a private local cluster."""


@dataclass
class Config:
    """A whole run."""

    out: str = "runs/default"
    """Run directory: local path or URL."""
    seed: int = 0
    log_interval_s: float = 10.0
    """Seconds between progress lines in a job log."""
    prepare: str | None = None
    """Data made before the run: `demo` draws the toy world under `<out>/world`."""
    controls: list[str] = field(default_factory=list)
    """Fine-tunes to run beside the adapted one for comparison: source_only, median (median-filtered `restored`),
    supervised (the target's ground truth from training.supervised_hq: the upper bound)."""
    data: DataConfig = field(default_factory=DataConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    ray: RayConfig = field(default_factory=RayConfig)

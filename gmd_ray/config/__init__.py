"""Settings: typed dataclasses, presets and overrides."""

from gmd_ray.config.data import SourceConfig, TargetConfig
from gmd_ray.config.models import PoolConfig, ScorerConfig, StudentConfig
from gmd_ray.config.plan import PlanConfig
from gmd_ray.config.schema import Config, GateConfig, RayConfig, TrackingConfig
from gmd_ray.config.stages import EvaluationConfig, GenerationConfig, PretrainConfig, TrainingConfig
from gmd_ray.config.teacher import InjectionConfig, TeacherConfig

__all__ = [
    "Config",
    "EvaluationConfig",
    "GateConfig",
    "GenerationConfig",
    "InjectionConfig",
    "PlanConfig",
    "PoolConfig",
    "PretrainConfig",
    "RayConfig",
    "ScorerConfig",
    "SourceConfig",
    "StudentConfig",
    "TargetConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainingConfig",
]

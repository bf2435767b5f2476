"""Settings of a run: typed dataclasses, presets and overrides."""

from gmd_ray.config.sections.data import DataConfig, SourceConfig, TargetConfig
from gmd_ray.config.sections.evaluation import EvaluationConfig, PromotionGate, TrackingConfig
from gmd_ray.config.sections.generation import GenerationConfig
from gmd_ray.config.sections.models import PoolConfig, ScorerConfig, StudentConfig
from gmd_ray.config.sections.run import Config, PlanConfig, RayConfig
from gmd_ray.config.sections.teacher import InjectionConfig, TeacherConfig
from gmd_ray.config.sections.training import PretrainConfig, TrainingConfig

__all__ = [
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "GenerationConfig",
    "InjectionConfig",
    "PlanConfig",
    "PoolConfig",
    "PretrainConfig",
    "PromotionGate",
    "RayConfig",
    "ScorerConfig",
    "SourceConfig",
    "StudentConfig",
    "TargetConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainingConfig",
]

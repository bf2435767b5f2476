"""Settings: typed dataclasses, presets and overrides."""

from gmd_ray.config.schema import (
    Config,
    EvaluationConfig,
    GateConfig,
    GenerationConfig,
    InjectionConfig,
    PoolConfig,
    RayConfig,
    ScorerConfig,
    SourceConfig,
    StudentConfig,
    TargetConfig,
    TeacherConfig,
    TrackingConfig,
    TrainingConfig,
)

__all__ = [
    "Config",
    "EvaluationConfig",
    "GateConfig",
    "GenerationConfig",
    "InjectionConfig",
    "PoolConfig",
    "RayConfig",
    "ScorerConfig",
    "SourceConfig",
    "StudentConfig",
    "TargetConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainingConfig",
]

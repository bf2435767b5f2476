"""Tracking with MLflow: runs, the model registry and promotion.

No other package imports mlflow, and this one imports it when it is first used.
"""

from gmd_ray.tracking.client import TrackingError
from gmd_ray.tracking.recorder import MlflowRecorder
from gmd_ray.tracking.registry import Decision, judge, promote, register
from gmd_ray.tracking.runs import start_run

__all__ = ["Decision", "MlflowRecorder", "TrackingError", "judge", "promote", "register", "start_run"]

"""MLflow: runs, the model registry, promotion. The only room that imports mlflow, and only when used."""

from gmd_ray.tracking.client import TrackingError
from gmd_ray.tracking.recorder import MlflowRecorder
from gmd_ray.tracking.registry import Decision, promote, register
from gmd_ray.tracking.runs import start_run

__all__ = ["Decision", "MlflowRecorder", "TrackingError", "promote", "register", "start_run"]

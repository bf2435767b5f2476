"""Tracking with MLflow: runs, the model registry and promotion.

No other package imports mlflow, and this one imports it when it is first used.
"""

from gmd_ray.tracking.champions import Decision, history, judge, promote, promote_version, register_kept, rollback
from gmd_ray.tracking.client import TrackingError
from gmd_ray.tracking.outcome import record_outcome
from gmd_ray.tracking.recorder import MlflowRecorder
from gmd_ray.tracking.registry import forget_registration, keep_registration, register
from gmd_ray.tracking.runs import send_kept, start_run
from gmd_ray.tracking.trace import trace
from gmd_ray.tracking.versions import RegisteredVersion, compare_versions, fetch_student, find_version

__all__ = [
    "Decision",
    "MlflowRecorder",
    "RegisteredVersion",
    "TrackingError",
    "compare_versions",
    "fetch_student",
    "find_version",
    "forget_registration",
    "history",
    "judge",
    "keep_registration",
    "promote",
    "promote_version",
    "record_outcome",
    "register",
    "register_kept",
    "rollback",
    "send_kept",
    "start_run",
    "trace",
]

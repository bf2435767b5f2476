"""Checks and estimates before a run: the preflight, `gmd-ray check` and `gmd-ray plan`."""

from gmd_ray.planning.findings import Finding, Findings
from gmd_ray.planning.preflight import STAGES, Preflight

__all__ = ["STAGES", "Finding", "Findings", "Preflight"]

"""What is told before anything is spent: the preflight of every verb that runs for long, and `gmd-ray check`."""

from gmd_ray.planning.findings import Finding, Findings
from gmd_ray.planning.preflight import STAGES, Preflight

__all__ = ["STAGES", "Finding", "Findings", "Preflight"]

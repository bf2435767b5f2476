"""Settings of `gmd-ray plan`: the fleet, what it reaches, and the prices that somebody pays."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PlanConfig:
    """What a run is planned for. Nothing here is a measurement of ours, and nothing here changes a run."""

    accelerators: int | None = None
    """The fleet; default: what `teacher.pool.max` replicas take."""
    tflops: float | None = None
    """TFLOP/s that one accelerator reaches in the teacher; without it, hours come from `--probe` alone. Public code
    reports 310 (eager) to 484 (compiled) on an H100 in bfloat16 (teacher.md 4.5)."""
    scale: int | None = None
    """Enlargement by the student; default: as its checkpoint says."""
    price_per_hour: float | None = None
    """Of one accelerator."""
    storage_price: float | None = None
    """Of a GB for a month."""
    storage_months: float = 1.0
    """How long the pairs are kept."""
    currency: str = "USD"
    """Of the prices, as it is printed."""

"""Time, disk space and price that a run took, in the terms of its plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gmd_ray.config import Config, PlanConfig
from gmd_ray.pairstore import run_settings

PLAN_FILE = "plan.json"
"""Name of the last plan in the store's directory."""


def accelerator_seconds(cfg: Config, seconds: Mapping[str, float]) -> float:
    """Convert seconds by stage (restore, project, score) to accelerator-seconds.

    Each stage's seconds count times the accelerators that an actor of its pool holds. A teacher replica without an
    accelerator counts as one.
    """
    pools = {"restore": cfg.student.pool, "project": cfg.teacher.pool, "score": cfg.scorer.pool}
    shares = {stage: pool.num_gpus for stage, pool in pools.items()}
    shares["project"] = shares["project"] or 1
    return sum(shares[stage] * (seconds[stage] or 0) for stage in shares)


def price(prices: PlanConfig, hours: float, disk: int) -> float | None:
    """Price of accelerator-hours and of bytes stored for `storage_months`; None where `price_per_hour` is not set."""
    if prices.price_per_hour is None:
        return None
    return hours * prices.price_per_hour + (prices.storage_price or 0) * prices.storage_months * disk / 1e9


def predicted_and_actual(
    cfg: Config,
    plan: dict[str, Any] | None,
    *,
    ok: int,
    seconds: dict[str, float],
    wall: float | None,
    disk: int,
) -> dict[str, Any]:
    """Make the manifest's entry `cost`: what was planned, and what the store took.

    Args:
        plan: `plan.json` of the store; `predicted` is null where it is None or was made for other settings.
        ok: ok rows of the whole store.
        seconds: seconds by stage of the whole store.
        disk: bytes of all part files.
        wall: seconds of all runs over the store; None where they are not all known.

    Accelerator-hours count the time in which the models worked on stored rows. Loading, waiting and work that was lost
    and done again come on top, in the plan as well.
    """
    if plan is not None and plan.get("settings_fingerprint") != run_settings.fingerprint(run_settings.relevant(cfg)):
        plan = None
    busy = accelerator_seconds(cfg, seconds)
    same_images = plan is not None and plan["images"] == ok
    return {
        "predicted": plan,
        "actual": {
            "images": ok,
            "accelerator_hours": busy / 3600,
            "wall_hours": None if wall is None else wall / 3600,
            "disk_bytes": disk,
            "price": price(cfg.plan, busy / 3600, disk),
            "currency": cfg.plan.currency,
            # The value to set plan.tflops to for the next plan.
            "tflops": plan["flops"] / busy / 1e12 if plan is not None and same_images and busy else None,
        },
    }

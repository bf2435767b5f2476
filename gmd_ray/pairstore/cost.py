"""What a run took, in the terms it was planned in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gmd_ray.config import Config, PlanConfig
from gmd_ray.pairstore import run_settings

PLAN_FILE = "plan.json"
"""In the store's directory: the last plan."""


def accelerator_seconds(cfg: Config, seconds: Mapping[str, float]) -> float:
    """Seconds by stage (restore, project, score) as seconds of accelerators, by what each pool's actors hold.

    Without any accelerator a teacher replica counts as one.
    """
    pools = {"restore": cfg.student.pool, "project": cfg.teacher.pool, "score": cfg.scorer.pool}
    shares = {stage: pool.num_gpus for stage, pool in pools.items()}
    shares["project"] = shares["project"] or 1
    return sum(shares[stage] * (seconds[stage] or 0) for stage in shares)


def price(prices: PlanConfig, hours: float, disk: int) -> float | None:
    """Of accelerator-hours and of bytes kept for `storage_months`; None without a price for the former."""
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
    """The manifest's entry `cost`: what was planned, and what it took.

    Args:
        plan: `plan.json` of the store; None, or one made for other settings, leaves `predicted` null.
        ok, seconds, disk: of the whole store: ok rows, seconds by stage, bytes of the part files.
        wall: seconds of all runs over the store; None where they are not all known.

    Accelerator-hours are those that the models of the stored rows were busy: loading, waiting, and work that was lost
    and done again come on top, as they do in the plan.
    """
    if plan is not None and plan.get("settings_fingerprint") != run_settings.fingerprint(run_settings.relevant(cfg)):
        plan = None
    spent = accelerator_seconds(cfg, seconds)
    same_images = plan is not None and plan["images"] == ok
    return {
        "predicted": plan,
        "actual": {
            "images": ok,
            "accelerator_hours": spent / 3600,
            "wall_hours": None if wall is None else wall / 3600,
            "disk_bytes": disk,
            "price": price(cfg.plan, spent / 3600, disk),
            "currency": cfg.plan.currency,
            # What plan.tflops of the next plan should be.
            "tflops": plan["flops"] / spent / 1e12 if plan is not None and same_images and spent else None,
        },
    }

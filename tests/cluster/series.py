"""The PromQL of the dashboard and of the alert rules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

GRAFANA = Path(__file__).parents[2] / "cluster" / "grafana"
DASHBOARD = GRAFANA / "dashboards" / "gmd_ray.json"
ALERTS = GRAFANA / "alerts" / "gmd_ray.yaml"

NAME = re.compile(r"\b(?:ray|autoscaler)_\w+")
"""Names of series in an expression."""
NEEDS_A_GPU = {
    "ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available", "ray_node_gpu_temperature_celsius",
}  # fmt: skip
"""Series of Ray's that a node without a GPU does not export (ray/dashboard/modules/reporter/reporter_agent.py)."""


def expressions() -> Iterator[str]:
    """Each expression, and the query of each variable."""
    document = json.loads(DASHBOARD.read_text())
    for panel in document["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in document["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]

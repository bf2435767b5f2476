"""The dashboard and the alert rules, as far as their text goes; a running job's series are in test_submit_on_ray.py."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from gmd_ray.ray_utils.metrics import MEASURES
from tests.cluster.series import ALERTS, DASHBOARD, NAME, expressions
from tests.cluster.tools import CLUSTER, check

PANELS: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
OURS = {series: measure for measure in MEASURES.values() for series in measure.series}


def test_every_metric_of_ours_is_shown_and_exists() -> None:
    named = {name for text in expressions() for name in NAME.findall(text)}
    assert {name for name in named if name.startswith("ray_gmd_")} <= OURS.keys()
    shown = {OURS[name].name for name in named if name in OURS}
    assert shown == MEASURES.keys()


def test_labels_of_ours_exist() -> None:
    for text in expressions():
        ours = [OURS[name] for name in NAME.findall(text) if name in OURS]
        if not ours or "__name__" in text:
            continue
        known = {label for measure in ours for label in measure.labels} | {"le"}
        grouped = {label for group in re.findall(r"\bby \(([^)]*)\)", text) for label in group.split(", ")}
        matched = set(re.findall(r"[{,](\w+)=~?\"", text))
        assert grouped | matched <= known, text


def test_panels_have_ids_places_and_the_datasource_of_the_reader() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(ids) == len(set(ids))
    places = sorted((panel["gridPos"]["y"], panel["gridPos"]["x"], panel["gridPos"]["w"]) for panel in PANELS)
    for (row, left, width), (next_row, next_left, _) in pairwise(places):
        assert left + width <= 24
        assert next_row > row or next_left >= left + width, "panels overlap"
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["description"].endswith(".")
    variables = {each["name"]: each for each in json.loads(DASHBOARD.read_text())["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"


def test_alerts_say_what_and_what_to_do() -> None:
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    for rule in group["rules"]:
        assert {"alert", "expr", "for", "labels", "annotations"} == rule.keys()
        assert {"summary", "description"} == rule["annotations"].keys()
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"])


RULE_TEST = f"""
rule_files: [{ALERTS}]
evaluation_interval: 1m
tests:
- interval: 1m
  input_series:
  - {{series: 'ray_gmd_images_waiting{{run="stuck"}}', values: '5x180'}}
  - {{series: 'ray_gmd_images_total{{run="stuck",state="accepted"}}', values: '9x60'}}
  - {{series: 'ray_gmd_images_waiting{{run="goes on"}}', values: '100-1x60'}}
  - {{series: 'ray_gmd_images_total{{run="goes on",state="accepted"}}', values: '0+9x60'}}
  - {{series: 'ray_gmd_images_total{{run="goes on",state="failed"}}', values: '0+1x60'}}
  - {{series: 'ray_gmd_checkpoint_time_seconds{{run="goes on",fine_tune="adapted"}}', values: '0x120'}}
  - {{series: 'ray_node_gpus_utilization{{instance="a",GpuIndex="0"}}', values: '90x60 8x120'}}
  - {{series: 'ray_node_gpus_utilization{{instance="b",GpuIndex="0"}}', values: '90x60 16x120'}}
  - {{series: 'ray_node_gram_used{{instance="a",GpuIndex="0"}}', values: '79x60'}}
  - {{series: 'ray_node_gram_available{{instance="a",GpuIndex="0"}}', values: '1x60'}}
  - {{series: 'ray_node_gram_used{{instance="b",GpuIndex="0"}}', values: '77x60'}}
  - {{series: 'ray_node_gram_available{{instance="b",GpuIndex="0"}}', values: '3x60'}}
  - {{series: 'ray_node_gpu_temperature_celsius{{instance="a",GpuIndex="1"}}', values: '70x20 91x40'}}
  - {{series: 'ray_node_gpu_temperature_celsius{{instance="b",GpuIndex="0"}}', values: '84x60'}}
  alert_rule_test:
  - eval_time: 50m
    alertname: GmdNoProgress
    exp_alerts:
    - exp_labels: {{run: stuck, severity: warning}}
      exp_annotations:
        summary: "stuck: no image was finished for half an hour"
        description: "5 images wait. See `gmd-ray status`, and the queue and the replicas on the dashboard."
  - eval_time: 50m
    alertname: GmdImagesFail
    exp_alerts:
    - exp_labels: {{run: goes on, severity: warning}}
      exp_annotations:
        summary: "goes on: 10% of the images fail"
        description: "`gmd-ray status` counts them by stage and error."
  - eval_time: 50m
    alertname: GmdCheckpointOld
    exp_alerts: []
  - eval_time: 70m
    alertname: GmdCheckpointOld
    exp_alerts:
    - exp_labels: {{run: goes on, fine_tune: adapted, severity: warning}}
      exp_annotations:
        summary: "goes on adapted: the last checkpoint is 1h 10m 0s old"
        description: "A lost node costs that much: lower training.checkpoint_every."
  - {{eval_time: 50m, alertname: GmdGpusIdle, exp_alerts: []}}
  - eval_time: 120m
    alertname: GmdGpusIdle
    exp_alerts:
    - exp_labels: {{severity: info}}
      exp_annotations:
        summary: "GPUs are at work for 12 % of their time, though images wait"
        description: "See which stage is busy: teachers may wait for photos, or share too few CPUs. Lower max of pools."
  - eval_time: 50m
    alertname: GmdGpuMemoryFull
    exp_alerts:
    - exp_labels: {{instance: a, GpuIndex: "0", severity: warning}}
      exp_annotations:
        summary: "a GPU 0: 98.75% of its memory is used"
        description: "A larger photo may find none left. Lower batch_size of the pool, or let fewer models share it."
  - {{eval_time: 25m, alertname: GmdGpuHot, exp_alerts: []}}
  - eval_time: 50m
    alertname: GmdGpuHot
    exp_alerts:
    - exp_labels: {{instance: a, GpuIndex: "1", severity: warning}}
      exp_annotations:
        summary: "a GPU 1: 91 degrees Celsius"
        description: "It slows down by itself, and its images take longer. Look at the cooling of that machine."
"""


def test_prometheus_takes_the_rules_and_they_fire(tmp_path: Path) -> None:
    check("promtool", "check", "rules", ALERTS)
    file = tmp_path / "test.yaml"
    file.write_text(RULE_TEST)
    check("promtool", "test", "rules", file)


def test_the_lab_machine_finds_dashboard_rules_and_prometheus() -> None:
    compose, prometheus = load("docker-compose.yaml"), load("prometheus/prometheus.yaml")
    services = compose["services"]
    [provider] = load("grafana/provisioning/dashboards/gmd_ray.yaml")["providers"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
    [source] = load("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == services["head"]["environment"]["RAY_PROMETHEUS_HOST"]
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    [pattern] = prometheus["rule_files"]
    assert f"./grafana/alerts:{Path(pattern).parent}:ro" in services["prometheus"]["volumes"]
    assert ALERTS.match(Path(pattern).name)


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))
    return found

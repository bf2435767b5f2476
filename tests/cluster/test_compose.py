"""The lab machine: the compose file, and its MLflow and Prometheus settings used or read by the real programs."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from gmd_ray.config.sections.generation import GenerationConfig
from gmd_ray.weights.copies import CACHE
from tests.cluster.tools import CLUSTER, check, load
from tests.servers.running import running_mlflow

FILE = CLUSTER / "docker-compose.yaml"
SERVICES = load("docker-compose.yaml")["services"]
SECRET = re.compile(r"\$\{([A-Z0-9_]+):\?see lab\.env\.example\}")


def test_the_schema_of_compose_takes_it() -> None:
    check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", FILE)


def test_nothing_listens_beyond_loopback_unless_asked() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 5
    assert all(port.startswith("${GMD_BIND:-127.0.0.1}:") for port in ports)
    assert not any("network_mode" in service for service in SERVICES.values())


def test_tokens_are_on_and_no_secret_is_written_down() -> None:
    ray = [service for service in SERVICES.values() if "ray start" in str(service.get("command"))]
    assert len(ray) == 3
    for service in ray:
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert SECRET.fullmatch(service["environment"]["RAY_AUTH_TOKEN"])
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN", name):
                assert SECRET.fullmatch(value) or value == "${HF_TOKEN:-}", name


def test_a_worker_that_is_stopped_has_time_to_hand_over() -> None:
    for name in ("worker-cpu", "worker-gpu"):
        drain = int(SERVICES[name]["environment"]["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert GenerationConfig().grace_s < drain < int(SERVICES[name]["stop_grace_period"].removesuffix("s"))


def test_the_example_names_every_variable_without_a_default() -> None:
    needed = set(SECRET.findall(FILE.read_text(encoding="utf-8")))
    example = (CLUSTER / "lab.env.example").read_text(encoding="utf-8")
    assert needed <= set(re.findall(r"^([A-Z0-9_]+)=", example, re.MULTILINE))
    assert not re.search(r"^[A-Z0-9_]+=.+$", example, re.MULTILINE)


def test_whoever_is_waited_for_can_say_that_it_is_up() -> None:
    for service in SERVICES.values():
        for name, condition in service.get("depends_on", {}).items():
            once = condition["condition"] == "service_completed_successfully"
            assert once or "healthcheck" in SERVICES[name], name


def test_every_file_that_is_mounted_is_here() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", []) if mount.startswith("./")]
    folders = {"./grafana/provisioning", "./grafana/dashboards", "./grafana/alerts"}  # grafana/README.md
    paths = {mount.split(":")[0] for mount in mounts}
    assert folders <= paths
    assert all((CLUSTER / path).is_file() for path in paths - folders)


def test_all_containers_of_ray_share_a_cache_of_weights_that_they_may_write() -> None:
    """A new volume takes over the owner of the image's folder."""
    dockerfile = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    owned = re.findall(r"install --directory --owner=ray --group=ray (.*)$", dockerfile, re.MULTILINE)
    assert len(owned) == 2
    for name in ("head", "worker-cpu", "worker-gpu"):
        place = SERVICES[name]["environment"][CACHE]
        assert f"cache:{place}" in SERVICES[name]["volumes"]
        assert all(place in folders.split() for folders in owned)


def test_prometheus_takes_its_settings_and_finds_the_nodes() -> None:
    [job] = load("prometheus/prometheus.yaml")["scrape_configs"]
    [file] = job["file_sd_configs"][0]["files"]
    volume, _, place = next(mount for mount in SERVICES["head"]["volumes"] if mount.startswith("ray:")).partition(":")
    assert place == "/tmp/ray"  # where Ray writes the list
    assert f"{volume}:{Path(file).parent}:ro" in SERVICES["prometheus"]["volumes"]
    check("promtool", "check", "config", "--syntax-only", CLUSTER / "prometheus" / "prometheus.yaml")


@pytest.mark.slow
def test_the_mlflow_server_answers_by_the_name_that_the_workers_use(tmp_path: Path) -> None:
    """MLflow refuses names of its host that it was not told, which is what a client would see last."""
    given = SERVICES["mlflow"]["environment"]
    environment = {name: given[name] for name in ("MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_DISABLE_TELEMETRY")}
    uri = SERVICES["head"]["environment"]["MLFLOW_TRACKING_URI"]

    def status(url: str, host: str) -> int:
        query = f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0"
        try:
            with urllib.request.urlopen(urllib.request.Request(query, headers={"Host": host}), timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    database = f"sqlite:///{tmp_path}/mlflow.db"
    with running_mlflow(tmp_path / "log", database, str(tmp_path / "artifacts"), environment) as server:
        assert status(server.url, uri.removeprefix("http://")) == 200
        assert status(server.url, "localhost:5000") == 200
        assert status(server.url, "elsewhere.example:5000") == 403

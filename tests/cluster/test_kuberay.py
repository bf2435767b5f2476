"""The KubeRay manifests, as kustomize builds them, against the CRDs and the operator's own rules."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S

from gmd_ray.weights.copies import CACHE
from tests.cluster.tools import KUBERAY, OVERLAYS, build, check, container, overlay, spec

CLUSTERS = [*OVERLAYS, "small-job", "large-job"]
CLOUDS = ("gke", "eks")
MARGIN_S = 10
"""Seconds that a pod has between the deadline of preStop and SIGKILL."""


def strict(node: Any) -> Any:
    """A CRD's openAPIV3Schema as a JSON schema that refuses unknown fields, as the API server does."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            out[key] = {name: strict(child) for name, child in value.items()}
        elif not key.startswith("x-kubernetes-") and key not in ("description", "format", "default"):
            out[key] = strict(value)
    if node.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
        out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
        out.setdefault("additionalProperties", False)
    return out


@pytest.fixture(scope="module")
def schemas(shared_data: Path) -> dict[str, Draft202012Validator]:
    found = {}
    for kind in ("RayCluster", "RayJob"):
        crd = json.loads((shared_data / "kuberay-1.7.0" / f"{kind.lower()}.v1.schema.json").read_text())
        schema = strict(crd)
        schema["properties"]["metadata"] = {"type": "object"}
        found[kind] = Draft202012Validator(schema)
    return found


def mistakes(schemas: dict[str, Draft202012Validator], document: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message[:200]}" for error in schemas[document["kind"]].iter_errors(document)]


def groups(name: str) -> list[dict[str, Any]]:
    return [spec(name)["headGroupSpec"], *spec(name)["workerGroupSpecs"]]


def in_cloud(cloud: str, tmp_path: Path) -> dict[str, Any]:
    """The RayCluster of the overlay `large` with the component of a cloud, as the README has a user write it."""
    (tmp_path / "kuberay").symlink_to(KUBERAY)
    text = f"resources: [kuberay/large]\ncomponents: [kuberay/clouds/{cloud}]\n"
    (tmp_path / "kustomization.yaml").write_text(text, encoding="utf-8")
    [found] = [document for document in build(tmp_path) if document["kind"] == "RayCluster"]
    return found


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_api_server_would_take_it(schemas: dict[str, Draft202012Validator], name: str) -> None:
    kind = "RayJob" if name.endswith("-job") else "RayCluster"
    assert mistakes(schemas, overlay(name)[kind]) == []
    assert ("RayCluster" in overlay(name)) == (kind == "RayCluster")


def test_a_typo_is_refused(schemas: dict[str, Draft202012Validator]) -> None:
    document = json.loads(json.dumps(overlay("small")["RayCluster"]))
    group = document["spec"]["workerGroupSpecs"][0]
    group["idleTimeoutSecond"] = 3
    group["minReplicas"] = "0"
    container(group)["imagePullPolicies"] = "Always"
    said = "\n".join(mistakes(schemas, document))
    assert all(word in said for word in ("idleTimeoutSecond", "'0' is not of type", "imagePullPolicies"))


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_operator_would_take_it(name: str) -> None:
    """Its own rules, beside the schema (`controllers/ray/utils/validation.go` of KubeRay 1.7)."""
    found = spec(name)
    assert found["authOptions"] == {"mode": "token"}
    assert tuple(map(int, found["rayVersion"].split("."))) >= (2, 52, 0)  # tokens
    assert found["enableInTreeAutoscaling"]
    assert found["autoscalerOptions"]["version"] == "v2"
    for group in groups(name):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert not {"labels", "resources"} & set(group["rayStartParams"])
        assert not ("resources" in group and {"num-cpus", "num-gpus"} & set(group["rayStartParams"]))
        assert group["template"]["spec"].get("restartPolicy", "Never") == "Never"  # autoscaler v2
        names = {entry["name"] for entry in container(group)["env"]}
        assert not {"RAY_enable_autoscaler_v2", "RAY_AUTH_MODE", "REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & names
        for key, value in group["labels"].items():  # they become labels of pods
            assert re.fullmatch(r"([a-z0-9.-]+/)?[A-Za-z0-9][A-Za-z0-9._-]{0,62}", key)
            assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value)
    for group in found["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["maxReplicas"]
        assert group["idleTimeoutSeconds"] > 0
        assert re.fullmatch(r"[a-z][a-z0-9-]{0,40}", group["groupName"])


def test_the_image_has_the_ray_that_the_manifest_names() -> None:
    lock = (KUBERAY.parents[1] / "requirements.lock").read_text(encoding="utf-8")
    assert f"\nray=={spec('base')['rayVersion']}\n" in lock


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_head_does_no_work(name: str) -> None:
    assert spec(name)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in container(spec(name)["headGroupSpec"])["resources"]["limits"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_pod_has_the_image_the_volume_the_settings_and_the_secrets(name: str) -> None:
    objects = overlay(name)
    claim, settings = objects["PersistentVolumeClaim"]["metadata"]["name"], objects["ConfigMap"]
    assert objects["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in groups(name):
        pod, ray = group["template"]["spec"], container(group)
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in ray["volumeMounts"]}
        assert mounts["/shared"]["persistentVolumeClaim"]["claimName"] == claim
        assert mounts["/etc/gmd_ray"]["configMap"]["name"] == settings["metadata"]["name"]
        [cache] = [entry["value"] for entry in ray["env"] if entry["name"] == CACHE]
        assert mounts[cache]["emptyDir"] == {}
        assert all(entry["value"].startswith("/shared/") for entry in ray["env"] if entry["name"].endswith("_HOME"))
        assert [source["secretRef"]["name"] for source in ray["envFrom"]] == [
            "gmd-hub", "gmd-object-store", "gmd-mlflow"
        ]  # fmt: skip
        assert pod["imagePullSecrets"] == [{"name": "gmd-registry"}]
        assert ray["imagePullPolicy"] == "IfNotPresent"
        assert pod["securityContext"]["runAsNonRoot"]
        assert ray["resources"]["limits"] == ray["resources"]["requests"]
        assert ray["image"] == ("gmd-ray" if name == "base" else "registry.example.com/gmd-ray:0.1.0")
    assert {document["metadata"]["namespace"] for document in objects.values()} == {"gmd"}


def drained(group: dict[str, Any]) -> tuple[int, int]:
    """Seconds that preStop and Ray's own drain wait, and seconds that the pod has before it is killed."""
    *command, seconds = container(group)["lifecycle"]["preStop"]["exec"]["command"]
    assert command == ["sh", "/etc/gmd_ray/drain.sh"]
    environment = {entry["name"]: entry["value"] for entry in container(group)["env"]}
    again = int(environment.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S))
    return int(seconds) + again, group["template"]["spec"]["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_worker_drains_before_it_is_killed(name: str) -> None:
    assert overlay(name)["ConfigMap"]["data"]["drain.sh"] == (KUBERAY / "base" / "drain.sh").read_text()
    for group in spec(name)["workerGroupSpecs"]:
        deadline, grace = drained(group)
        assert 60 < deadline <= grace - MARGIN_S  # generation.grace_s is 60


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_cloud_says_which_nodes_are_spot(
    schemas: dict[str, Draft202012Validator], cloud: str, tmp_path: Path
) -> None:
    document = in_cloud(cloud, tmp_path)
    assert mistakes(schemas, document) == []
    before = {group["groupName"]: group for group in spec("large")["workerGroupSpecs"]}
    after = {group["groupName"]: group for group in document["spec"]["workerGroupSpecs"]}
    changed = {name for name, group in after.items() if group != before[name]}
    assert changed == ({"teacher-spot"} if cloud == "gke" else {"teacher-spot", "teacher", "trainer"})
    assert "spot" in str(after["teacher-spot"]["template"]["spec"]["nodeSelector"])
    for group in after.values():
        deadline, grace = drained(group)
        assert deadline <= grace - MARGIN_S
    if cloud == "gke":
        assert drained(after["teacher-spot"])[1] <= 25  # GKE's notice is 30 s, less what the kubelet keeps


def test_the_head_has_a_disruption_budget() -> None:
    budget = overlay("large")["PodDisruptionBudget"]["spec"]
    # An integer minAvailable is the only form that pods of a custom resource have. The selector takes the heads of all
    # clusters of the namespace: with 1, one of two side by side could be evicted.
    assert "maxUnavailable" not in budget
    assert isinstance(budget["minAvailable"], int)
    assert budget["minAvailable"] >= 100
    assert budget["selector"]["matchLabels"]["ray.io/node-type"] == "head"


def test_prometheus_finds_every_port_of_a_pod() -> None:
    monitor = overlay("large")["PodMonitor"]["spec"]
    wanted = {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]}
    ports = [{port["name"] for port in container(group)["ports"]} for group in groups("large")]
    assert wanted <= ports[0]
    assert all(wanted & found == {"metrics"} for found in ports[1:])
    assert "PodMonitor" not in overlay("small")  # pasteable where its CRD is absent


def test_spot_teachers_come_before_those_on_demand() -> None:
    found = {group["groupName"]: group for group in spec("base")["workerGroupSpecs"]}
    spot, demand = found["teacher-spot"], found["teacher"]
    assert spot["priority"] > demand["priority"]
    assert [group["labels"]["ray.io/market-type"] for group in (spot, demand)] == ["spot", "on-demand"]
    assert spot["labels"]["pool"] == demand["labels"]["pool"]
    assert found["trainer"]["labels"]["ray.io/market-type"] == "on-demand"


@pytest.mark.parametrize("name", ["small", "large"])
def test_a_job_brings_the_cluster_of_its_overlay(name: str) -> None:
    job = overlay(f"{name}-job")["RayJob"]["spec"]
    assert job["rayClusterSpec"] == spec(name)
    assert job["shutdownAfterJobFinishes"]
    assert "clusterSelector" not in job  # not together with retries
    assert job["backoffLimit"] > 0


@pytest.mark.parametrize("name", ["small-job", "large-job"])
def test_a_job_runs_by_the_script_that_knows_when_again_is_no_use(name: str) -> None:
    assert overlay(name)["ConfigMap"]["data"]["run.sh"] == (KUBERAY / "base" / "run.sh").read_text()
    assert overlay(name)["RayJob"]["spec"]["entrypoint"].split()[:3] == ["sh", "/etc/gmd_ray/run.sh", "adapt"]


def test_the_scripts_of_pods_are_clean() -> None:
    check("shellcheck", *sorted((KUBERAY / "base").glob("*.sh")))

"""Every label, resource and path of a pool leads from a preset through the settings file to nodes that have them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from gmd_ray.config import Config, PoolConfig
from gmd_ray.config.load import load_config, preset_names
from gmd_ray.ray_utils.capacity import TASK_CPUS, has_labels, reserved
from gmd_ray.training.resources import resources_wanted
from tests.cluster.tools import CLUSTER, container, load, overlay, spec

FLUX = sorted(set(preset_names()) - {"base", "demo", "toy"})
"""Presets whose teacher takes a GPU; the others run anywhere, and the lab machine runs `demo`."""
GIVEN = ["data.root=/shared/data", "student.path=/shared/weights/student.pth", "out=/shared/runs/test"]


@dataclass(frozen=True)
class Nodes:
    """The nodes that one group, type or service can bring, all alike."""

    labels: dict[str, str]
    each: dict[str, float]
    """Ray's name of each resource -> how much one node has."""
    most: int

    def room(self, wants: dict[str, float]) -> int:
        """The number of actors that fit on all of them."""
        fits = [int(self.each.get(kind, 0) / amount + 1e-9) for kind, amount in wants.items() if amount]
        return self.most * min(fits, default=1_000_000)


def kuberay(name: str) -> list[Nodes]:
    """The groups of an overlay; Ray takes CPUs and GPUs from the limits of the container."""
    found = []
    for group in spec(name)["workerGroupSpecs"]:
        limits = container(group)["resources"]["limits"]
        each = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
        found.append(Nodes(group["labels"], each, group["maxReplicas"]))
    return found


def ray_up(file: str) -> list[Nodes]:
    types = load(file)["available_node_types"]
    workers = [node for name, node in types.items() if name != "head"]
    return [Nodes(node["labels"], node["resources"], node["max_workers"]) for node in workers]


def started(command: str, gpus: float = 0, most: int = 1) -> Nodes:
    """The node that `ray start` of a shell command makes."""
    options = dict(word.removeprefix("--").split("=", 1) for word in shlex.split(command) if "=" in word)
    cpus = options["num-cpus"].split(":-")[-1].rstrip("}")
    labels = dict(pair.split("=", 1) for pair in options["labels"].split(","))
    return Nodes(labels, {"CPU": float(cpus), "GPU": gpus}, most)


def lab() -> list[Nodes]:
    services = load("docker-compose.yaml")["services"]
    return [started(services["worker-cpu"]["command"]), started(services["worker-gpu"]["command"], gpus=1)]


def slurm(nodes: int) -> list[Nodes]:
    """The nodes of `ray.sbatch`, or the one of `array.sbatch`; `test_scripts.py` looks at their labels."""
    script = (CLUSTER / "slurm" / ("ray.sbatch" if nodes > 1 else "array.sbatch")).read_text(encoding="utf-8")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", script, re.MULTILINE))
    assert int(options["nodes"]) == nodes
    each = {"CPU": float(options["cpus-per-task"]), "GPU": float(options["gpus-per-node"])}
    if nodes == 1:
        return [Nodes({}, each, 1)]
    return [Nodes({"pool": "student"}, each, 1), Nodes({"pool": "teacher"}, each, nodes - 1)]


PLACES: dict[str, tuple[Path, Any]] = {
    **{
        f"kuberay/{name}": (CLUSTER / "kuberay" / name / "settings.yaml", lambda name=name: kuberay(name))
        for name in ("base", "small", "large")
    },
    "aws": (CLUSTER / "kuberay/base/settings.yaml", lambda: ray_up("aws.yaml")),
    "gcp": (CLUSTER / "kuberay/base/settings.yaml", lambda: ray_up("gcp.yaml")),
    "compose": (CLUSTER / "kuberay/small/settings.yaml", lab),
    "slurm": (CLUSTER / "slurm/settings.yaml", lambda: slurm(4)),
    "slurm, one node": (CLUSTER / "slurm/one-node.yaml", lambda: slurm(1)),
}
"""Place -> its settings file, and its nodes."""


def settings(file: Path, preset: str) -> Config:
    return load_config([f"preset={preset}", f"config={file}", *GIVEN], check_paths=False)


def pools(cfg: Config) -> Iterator[tuple[str, PoolConfig]]:
    yield "student", cfg.student.pool
    yield "scorer", cfg.scorer.pool
    yield "evaluation", cfg.evaluation.pool
    yield "teacher", cfg.teacher.pool


def on(nodes: list[Nodes], labels: dict[str, str]) -> list[Nodes]:
    return [group for group in nodes if has_labels(group.labels, labels)]


@pytest.mark.parametrize("preset", FLUX)
@pytest.mark.parametrize("place", PLACES)
def test_every_pool_finds_its_nodes(place: str, preset: str) -> None:
    file, nodes_of = PLACES[place]
    cfg, nodes = settings(file, preset), nodes_of()
    for name, pool in pools(cfg):
        room = sum(group.room(reserved(pool)) for group in on(nodes, pool.labels))
        assert room >= pool.max, f"{name}: {pool.max} actors, room for {room}"
        assert pool.labels or place == "slurm, one node"  # bound to a group wherever there are several
    training = resources_wanted(cfg)
    takes = {kind: training[kind] for kind in ("CPU", "GPU")}
    room = sum(group.room(takes) for group in on(nodes, cfg.training.labels))
    assert room >= training["max_workers"], f"training: {training['max_workers']:g} workers, room for {room}"


@pytest.mark.parametrize("place", PLACES)
def test_the_pools_that_run_together_fit_together(place: str) -> None:
    """Student, teacher and scorer at their largest, and a CPU each for a read and a write task."""
    file, nodes_of = PLACES[place]
    cfg, nodes = settings(file, FLUX[0]), nodes_of()
    together = [pool for name, pool in pools(cfg) if name != "evaluation"]
    for kind in ("CPU", "GPU"):
        for labels in {tuple(pool.labels.items()) for pool in together}:
            wanted = sum(pool.max * reserved(pool)[kind] for pool in together if tuple(pool.labels.items()) == labels)
            has = sum(group.most * group.each.get(kind, 0) for group in on(nodes, dict(labels)))
            assert wanted <= has + 1e-9, (labels, kind)
    taken = sum(pool.max * pool.num_cpus for pool in together)
    assert sum(group.most * group.each["CPU"] for group in nodes) - taken >= 2 * TASK_CPUS


def test_a_label_that_no_group_has_is_found() -> None:
    assert on(kuberay("base"), {"pool": "nowhere"}) == []
    assert started("ray start --num-cpus=${A:-3} --labels=pool=a,b=c").room({"CPU": 2.0, "GPU": 0.0}) == 1


@pytest.mark.parametrize("name", ["base", "small", "large"])
def test_the_pods_carry_the_settings_of_their_overlay(name: str) -> None:
    file = PLACES[f"kuberay/{name}"][0]
    assert overlay(name)["ConfigMap"]["data"]["settings.yaml"] == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["small-job", "large-job"])
def test_the_job_runs_a_preset_on_what_is_mounted(name: str) -> None:
    job = overlay(name)["RayJob"]["spec"]
    *program, verb = job["entrypoint"].split()[:3]
    words = job["entrypoint"].split()[3:]
    assert (program, verb) == (["sh", "/etc/gmd_ray/run.sh"], "adapt")  # the script hands its words to gmd-ray
    mounts = {mount["mountPath"] for mount in container(spec(name)["headGroupSpec"])["volumeMounts"]}
    given = dict(word.split("=", 1) for word in words)
    assert given.pop("preset") in FLUX
    folder, _, file = given.pop("config").rpartition("/")
    assert folder in mounts
    assert file in overlay(name)["ConfigMap"]["data"]
    assert all(any(value.startswith(f"{mount}/") for mount in mounts) for value in given.values()), given
    cfg = load_config(["preset=deblur_reds", *(f"{key}={value}" for key, value in given.items())], check_paths=False)
    wait = int(yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    assert wait > cfg.generation.grace_s


@pytest.mark.parametrize("name", ["base", "small", "large"])
def test_the_server_of_the_secret_is_the_one_that_is_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = PLACES[f"kuberay/{name}"][0]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert settings(file, FLUX[0]).tracking.uri is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert settings(file, FLUX[0]).tracking.uri == "http://mlflow:5000"

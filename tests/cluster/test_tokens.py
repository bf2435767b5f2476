"""Tokens are on by default in whatever starts Ray below `cluster/`; a new file that starts Ray has to be added here."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.tools import CLUSTER, KUBERAY, load, spec

STARTS = re.compile(r"\bray start\b(?!`)|^kind: Ray(?:Cluster|Job|Service)$", re.MULTILINE)
"""A command, or a manifest of KubeRay."""
BY_OPERATOR = {"kuberay/base/raycluster.yaml", "kuberay/job/rayjob.yaml"}
BY_RAY_UP = {"aws.yaml", "gcp.yaml"}
BY_SHELL = {"slurm/cluster.sh"}
BY_COMPOSE = {"docker-compose.yaml"}
OVERLAYS = sorted(
    file.parent.name for file in KUBERAY.glob("*/kustomization.yaml") if "kind: Component" not in file.read_text()
)


def files() -> list[Path]:
    return [path for path in sorted(CLUSTER.rglob("*")) if path.is_file() and path.suffix not in (".md", ".json")]


def documents(path: str) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all((CLUSTER / path).read_text(encoding="utf-8")) if found]


def test_every_file_that_starts_ray_is_looked_at() -> None:
    starting = {
        path.relative_to(CLUSTER).as_posix()
        for path in files()
        if STARTS.search(re.sub(r"^\s*#.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
    }
    assert starting == BY_OPERATOR | BY_RAY_UP | BY_SHELL | BY_COMPOSE


def test_none_switches_them_off() -> None:
    for path in files():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"RAY_AUTH_MODE\W+(?!token\b)\w+|auth_mode\W+disabled", text, re.IGNORECASE), path
        assert not re.search(r"RAY_AUTH_TOKEN(?:=|: )[^\s$\"{]", text), f"{path}: a token is written down"


@pytest.mark.parametrize("path", sorted(BY_RAY_UP))
def test_ray_up_hands_mode_and_token_to_every_container(path: str) -> None:
    raw = load(path)
    assert "--env=RAY_AUTH_MODE=token" in raw["docker"]["run_options"]
    assert raw["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    commands = [*raw["head_start_ray_commands"], *raw["worker_start_ray_commands"]]
    assert sum("ray start" in command for command in commands) == 2
    assert not any("RAY_AUTH" in command for command in commands), "nothing overrides the container's own"


def test_slurm_exports_the_mode_before_it_starts_anything() -> None:
    script = f"source {CLUSTER / 'slurm' / 'cluster.sh'}; bash -c 'echo $RAY_AUTH_MODE'"
    environment = {**os.environ, "SLURM_JOB_ID": "1", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "token\n", "and over that of the shell that submitted the job"
    for path in (CLUSTER / "slurm").glob("*.sbatch"):
        assert "cluster.sh" in path.read_text(encoding="utf-8")


def test_compose_has_both_in_every_ray_service() -> None:
    services = load("docker-compose.yaml")["services"]
    found = {name: each["environment"] for name, each in services.items() if "ray start" in str(each.get("command"))}
    assert found.keys() == {"head", "worker-cpu", "worker-gpu"}
    for environment in found.values():
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?"), "compose stops without one"


def test_kuberay_has_the_operator_make_one() -> None:
    """In the files themselves, which needs no kubectl: a RayJob takes its cluster from the base or has its own."""
    [cluster] = [found for found in documents("kuberay/base/raycluster.yaml") if found["kind"] == "RayCluster"]
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    for file in KUBERAY.rglob("*.yaml"):
        assert file.name == "raycluster.yaml" or "authOptions" not in file.read_text(encoding="utf-8"), file


@pytest.mark.parametrize("name", OVERLAYS)
def test_kuberay_keeps_it_in_every_overlay(name: str) -> None:
    assert spec(name)["authOptions"] == {"mode": "token"}

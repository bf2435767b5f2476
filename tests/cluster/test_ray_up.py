"""`cluster/aws.yaml` and `cluster/gcp.yaml` against Ray's own schema and checks, without a cloud."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray

from gmd_ray.weights.copies import CACHE
from tests.cluster.tools import load, spec

FILES = ("aws.yaml", "gcp.yaml")


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    return found


@pytest.mark.parametrize("file", FILES)
def test_ray_would_take_it(file: str, schema: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    raw = load(file)
    jsonschema.validate(raw, schema)  # prepare_config drops old keys in silence: the raw file as well
    validate_config(prepare_config(copy.deepcopy(raw)))


@pytest.mark.parametrize("file", FILES)
def test_a_typo_is_refused(file: str, schema: dict[str, Any]) -> None:
    raw = load(file)
    raw["available_node_types"]["teacher"]["max_worker"] = raw["available_node_types"]["teacher"].pop("max_workers")
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate(raw, schema)


@pytest.mark.parametrize("file", FILES)
def test_tokens_are_on(file: str) -> None:
    raw = load(file)
    assert "--env=RAY_AUTH_MODE=token" in raw["docker"]["run_options"]
    assert raw["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    [head] = [line for line in raw["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head


@pytest.mark.parametrize("file", FILES)
def test_the_cache_of_weights_lies_on_the_node_and_the_user_of_the_image_owns_it(file: str) -> None:
    raw = load(file)
    [cache] = [option.rpartition("=")[2] for option in raw["docker"]["run_options"] if f"--env={CACHE}=" in option]
    [volume] = [option for option in raw["docker"]["run_options"] if option.endswith(f":{cache}")]
    folder = volume.removeprefix("--volume=").partition(":")[0]
    assert f"sudo install --directory --owner=1000 --group=1000 {folder}" in raw["initialization_commands"]


@pytest.mark.parametrize("file", FILES)
def test_its_types_are_the_groups_of_kuberay(file: str) -> None:
    """The same settings file serves all three."""
    raw = load(file)
    types = raw["available_node_types"]
    groups = {group["groupName"]: group for group in spec("base")["workerGroupSpecs"]}
    assert set(types) == {"head", *groups}
    assert all(types[name]["labels"] == group["labels"] for name, group in groups.items())
    assert types["head"]["resources"] == {"CPU": 0}
    assert raw["max_workers"] >= sum(types[name]["max_workers"] for name in groups)
    assert types["teacher-spot"]["priority"] > types["teacher"].get("priority", 0)
    assert ("spot" in str(types["teacher-spot"]["node_config"])) == (file == "aws.yaml")
    assert ("preemptible" in str(types["teacher-spot"]["node_config"])) == (file == "gcp.yaml")

"""`cluster/aws.yaml` and `cluster/gcp.yaml` against Ray's own schema and checks, without a cloud."""

from __future__ import annotations

import copy
import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
from ray.autoscaler._private.gcp.config import DEFAULT_SERVICE_ACCOUNT_ID

from gmd_ray.weights.copies import CACHE
from tests.cluster.tools import CLUSTER, load, spec

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
    assert raw["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    [head] = [line for line in raw["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head


class Node:
    """A machine that Ray sets up by ssh: notes each command, and answers as Docker does for the image of the GPUs.

    It stands both for the provider, which knows the address, and for the module `subprocess`.
    """

    DEVNULL = subprocess.DEVNULL

    def __init__(self) -> None:
        self.commands: list[str] = []

    def external_ip(self, node: str) -> str:
        return "192.0.2.1"

    def check_call(self, command: list[str], **options: Any) -> int:
        self.commands.append(" ".join(command))
        return 0

    def check_output(self, command: list[str], **options: Any) -> bytes:
        self.commands.append(" ".join(command))
        if ".Config.Env" not in command[-1]:
            return b""
        stage = (CLUSTER / "Dockerfile").read_text(encoding="utf-8").split("FROM ")[-1]
        lines = re.findall(r"^ENV (.*)$", stage, re.MULTILINE)
        return json.dumps([word for line in lines for word in line.split()]).encode()


def started(file: str) -> tuple[dict[str, str], list[str]]:
    """Have Ray's own code set a node up until `docker run`: the files that it copies there, and the words of that.

    Returns:
        (local path -> path on the node, the words).
    """
    from ray.autoscaler._private.command_runner import DockerCommandRunner

    raw, node = load(file), Node()
    runner = DockerCommandRunner(
        raw["docker"],
        log_prefix="",
        node_id="node",
        provider=node,
        auth_config=raw["auth"],
        cluster_name=raw["cluster_name"],
        process_runner=node,
        use_internal_ip=False,
    )
    runner.ssh_command_runner.ssh_control_path = None
    for target, source in raw["file_mounts"].items():
        runner.run_rsync_up(source, target, {"docker_mount_if_possible": True})
    copied = [command.split()[-2:] for command in node.commands if command.startswith("rsync ")]
    runner.run_init(as_head=True, file_mounts=raw["file_mounts"], sync_run_yet=True)
    [run] = [command for command in node.commands if "docker run " in command]
    return {source: place.partition(":")[2] for source, place in copied}, run.split("docker run ")[1].split()


@pytest.mark.parametrize("file", FILES)
def test_the_token_lies_where_the_user_of_the_image_looks_for_it(file: str) -> None:
    """Ray mounts below the HOME among the image's variables, and without one below /root."""
    copied, words = started(file)
    mounts = dict(after.split(":") for word, after in itertools.pairwise(words) if word == "-v")
    home = re.findall(r"^WORKDIR (.*)$", (CLUSTER / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)[-1]
    assert mounts[copied["~/.ray/auth_token"]] == f"{home}/.ray/auth_token"


@pytest.mark.parametrize("file", FILES)
def test_secrets_reach_ray_start_and_stand_in_no_file_here(file: str) -> None:
    """Docker reads the file on the node, below the folder in which Ray puts what it copies there."""
    copied, words = started(file)
    assert f"--env-file={copied['~/.gmd_ray.env']}" in words
    assert not any(re.match(r"--env=\w*(TOKEN|SECRET|PASSWORD|ACCESS_KEY)", word) for word in words)
    assert "~/.gmd_ray.env" in (CLUSTER / "README.md").read_text(encoding="utf-8")  # Ray refuses a file that is absent


@pytest.mark.parametrize("file", FILES)
def test_every_node_may_pull_the_image_and_logs_in(file: str) -> None:
    """Ray runs the initialization commands before its bare `docker pull`."""
    raw = load(file)
    registry = raw["docker"]["image"].partition("/")[0]
    [login] = [line for line in raw["initialization_commands"] if registry in line]
    key = "IamInstanceProfile" if file == "aws.yaml" else "serviceAccounts"
    nodes = {name: kind["node_config"].get(key) for name, kind in raw["available_node_types"].items()}
    head, workers = nodes.pop("head"), list(nodes.values())
    assert workers[0]
    assert all(worker == workers[0] for worker in workers)
    if file == "aws.yaml":
        region = raw["provider"]["region"]
        command = (
            f"aws ecr get-login-password --region {region} | docker login --username AWS --password-stdin {registry}"
        )
        assert login == command
        assert head != workers[0]  # the head's may start machines
        named = [head["Name"], workers[0]["Name"]]
    else:
        assert login == f"gcloud auth configure-docker {registry} --quiet"
        assert head is None  # Ray's own bootstrap gives it one
        named = [DEFAULT_SERVICE_ACCOUNT_ID, workers[0][0]["email"].partition("@")[0]]
    assert f"for name in {' '.join(named)}; do" in (CLUSTER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", FILES)
def test_every_place_that_is_a_user_s_own_is_marked(file: str) -> None:
    """On its line, or in a comment just above its list item; and no comment counts them."""
    lines = (CLUSTER / file).read_text(encoding="utf-8").splitlines()
    own = re.compile(r"0{8}|your-project|10\.0\.0\.2|^  (region|availability_zone): ")
    for number, line in enumerate(lines):
        if own.search(line) and not line.lstrip().startswith("#"):
            above = [each for each in lines[max(0, number - 6) : number] if each.lstrip().startswith("#")]
            assert "yours" in line or any("yours" in each for each in above), line
    assert not re.search(r"\b(two|three|four|five|six|\d+) places", "\n".join(lines))


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

"""The image: linted, from the lock, without root, and with what the manifests call."""

from __future__ import annotations

import re
import tomllib

from gmd_ray.config.load import load_config
from tests.cluster.tools import CLUSTER, KUBERAY, ROOT, check, load

DOCKERFILE = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")


def stages() -> dict[str, str]:
    """Name -> text of each stage, in order."""
    parts = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {part.splitlines()[0].split(" AS ")[1]: part for part in parts}


def test_hadolint_finds_nothing() -> None:
    check("hadolint", "--failure-threshold", "info", CLUSTER / "Dockerfile")


def test_the_default_is_the_gpu_image_and_neither_runs_as_root() -> None:
    found = stages()
    assert list(found)[-1] == "gpu"
    for name in ("cpu", "gpu"):
        users = re.findall(r"^USER (.*)$", found[name], re.MULTILINE)
        assert users == ["1000:1000"]  # a number: Kubernetes cannot tell that a name is not root
        assert f"COPY --from=build-{name} " in found[name]
        # drain.sh, `ray up` (its head sets workers up out of its own container), the entry point, health checks
        for package in ("procps", "rsync", "openssh-client", "tini", "wget"):
            assert re.search(rf"\s{package}\s", found[name]), package
    assert "gcc" in found["gpu"]
    assert "nvidia" not in found["cpu"]


def test_cuda_is_that_of_the_locked_torch() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    [runtime] = re.findall(r"^nvidia-cuda-runtime==(\d+\.\d+)", lock, re.MULTILINE)
    assert re.match(rf"nvidia/cuda:{re.escape(runtime)}\.\d+-base-ubuntu", stages()["gpu"])


def test_every_version_comes_from_the_lock() -> None:
    installs = re.findall(r"uv pip install .*", DOCKERFILE)
    assert len(installs) == 2
    assert all("--constraint requirements.lock" in line for line in installs)


def test_the_extras_exist_and_the_image_has_no_non_commercial_package_unless_asked() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    [default] = re.findall(r"^ARG EXTRAS=(.*)$", DOCKERFILE, re.MULTILINE)
    assert default.split(",") == ["cluster"]
    assert {name.partition("[")[0] for name in extras["cluster"]} == {"boto3", "google-api-python-client", "psycopg"}


def test_the_builder_gets_what_is_copied() -> None:
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    copied = {name for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    assert {f"!{name}" for name in copied} <= set(ignored)
    assert all((ROOT / name).exists() for name in copied)


def test_an_image_as_the_readme_builds_it_runs_the_jobs_there_and_knows_its_commit() -> None:
    """Presets of the paper are refused without pyiqa, and a champion of an image without a commit is not traced."""
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    jobs = "".join(path.read_text(encoding="utf-8") for path in (CLUSTER / "README.md", KUBERAY / "job/rayjob.yaml"))
    presets = re.findall(r"preset=(\w+)", jobs)
    gates = {load_config([f"preset={name}"], check_paths=False).scorer.metric for name in presets}
    assert "nima" in gates
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert any(package.startswith("pyiqa") for package in extras["metrics"])
    [given] = re.findall(r"^arguments=\((.*)\)$", readme, re.MULTILINE)
    assert given == '--build-arg EXTRAS=cluster,metrics --build-arg GIT_COMMIT="$(git rev-parse HEAD)"'
    builds = re.findall(r"^docker build .*$", readme, re.MULTILINE)
    assert len(builds) == 2
    assert all('"${arguments[@]}"' in line for line in builds)


def test_compose_passes_the_arguments_of_the_image() -> None:
    services = load("docker-compose.yaml")["services"].values()
    builds = [service["build"] for service in services if "build" in service]
    assert {build["target"] for build in builds} == {"cpu", "gpu"}
    arguments = set(re.findall(r"^ARG (\w+)=", DOCKERFILE, re.MULTILINE))
    for build in builds:
        assert build["args"].keys() == arguments
        assert all(value.startswith(f"${{{name}:-") for name, value in build["args"].items())
    assert 'GIT_COMMIT="$(git rev-parse HEAD)" docker compose' in (CLUSTER / "README.md").read_text(encoding="utf-8")

"""The environment and the warnings of `gmd-ray submit`; no cluster is asked. Jobs: ray_utils/test_submit_on_ray.py."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gmd_ray.cli import main
from gmd_ray.errors import ExitCode
from gmd_ray.tracking.journal import _who
from gmd_ray.tracking.runs import _code
from gmd_ray.verbs.submit import _out_is_known, _runtime_env

ADDRESS = ["--address", "http://127.0.0.1:1"]  # nobody answers there
WARNING = "Ray's dashboard and logs will show "


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout of a package `gmd_ray`, with one commit."""
    root = tmp_path / "checkout"
    (root / "gmd_ray").mkdir(parents=True)
    (root / "gmd_ray" / "cli.py").write_text("")
    (root / "pyproject.toml").write_text("")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", "first")
    return root


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()


def job_env(folder: Path, *env: str) -> dict[str, Any]:
    args = argparse.Namespace(
        runtime_env=None,
        stop_time=None,
        env=list(env),
        working_dir=str(folder),
        words=["adapt"],
        include=[],
        exclude=[],
    )
    return dict(_runtime_env(args, None)["env_vars"])


def test_the_journal_of_a_job_names_whoever_submits_it(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmd_ray.verbs.submit.getpass.getuser", lambda: "alice")
    told = job_env(checkout)
    assert job_env(checkout, "LOGNAME=bob")["LOGNAME"] == "bob"
    monkeypatch.undo()
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("USER", "ray")  # of the head node
    monkeypatch.setenv("LOGNAME", told["LOGNAME"])  # as the job sees it
    assert _who() == f"alice@{os.uname().nodename}"


def test_a_user_without_a_name_submits_without_one(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("gmd_ray.verbs.submit.getpass.getuser", nameless)
    assert "LOGNAME" not in job_env(checkout)


def test_the_commit_of_the_code_travels_with_a_job(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    told = job_env(checkout)["GMD_RAY_GIT_COMMIT"]
    assert told == commit
    monkeypatch.setenv("GMD_RAY_GIT_COMMIT", told)  # as the job sees it
    assert _code() == {"mlflow.source.git.commit": commit}

    (checkout / "gmd_ray" / "cli.py").write_text("changed")
    monkeypatch.setenv("GMD_RAY_GIT_COMMIT", job_env(checkout)["GMD_RAY_GIT_COMMIT"])
    assert _code() == {"mlflow.source.git.commit": commit, "gmd_ray.git_dirty": "true"}


def test_a_commit_that_is_given_counts(checkout: Path) -> None:
    assert job_env(checkout, "GMD_RAY_GIT_COMMIT=0123abc")["GMD_RAY_GIT_COMMIT"] == "0123abc"


def test_code_without_git_does_not_bear_the_commit_of_the_image(checkout: Path) -> None:
    (checkout / ".git").rename(checkout / "no-git")
    assert job_env(checkout)["GMD_RAY_GIT_COMMIT"] == ""


def test_a_folder_without_the_package_leaves_the_commit_of_the_image(tmp_path: Path) -> None:
    assert "GMD_RAY_GIT_COMMIT" not in job_env(tmp_path)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--env", "HF_TOKEN"], "HF_TOKEN"),
        (["--env", "MLFLOW_TRACKING_PASSWORD=hunter2000"], "MLFLOW_TRACKING_PASSWORD"),
        (["--env", "STORE=s3://me:hunter2000@bucket/x"], "STORE"),
        (["--env", "HF_HOME=/weights", "--env", "HF_TOKEN_PATH=/x", "--env", "URL=http://host/x"], None),
    ],
)
def test_secrets_in_variables_of_a_job_are_warned_of(
    words: list[str], named: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hunter2000")
    assert main(["submit", "status", "x", *words, *ADDRESS]) == 1
    told = capsys.readouterr().err
    assert "hunter2000" not in told
    assert (f"{WARNING}{named}: give secrets to" in told) if named else (WARNING not in told)


def test_a_secret_in_the_command_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKING", "hunter2000")
    assert main(["submit", "status", "s3://me:hunter2000@bucket/x", *ADDRESS]) == 1
    told = capsys.readouterr().err
    assert f"{WARNING}the command: give secrets to" in told
    assert "hunter2000" not in told
    words = ["preset=toy", "tracking.uri=http://me:${oc.env:TRACKING}@host"]
    assert main(["submit", "generate", *words, *ADDRESS]) == 1
    assert WARNING not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["tracking.uri=${oc.env:GMD_NOT_SET_HERE}"], "tracking.uri: not checked here: this shell has no GMD_NOT_SET"),
        (["config=/not/here.yaml"], "config: not checked here: /not/here.yaml is not on this machine"),
    ],
)
def test_what_only_the_cluster_knows_is_left_to_the_job(
    words: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes as far as the cluster's address; a mistake in another setting is told before."""
    submit = ["submit", "generate", "preset=toy", *words, "--working-dir", str(tmp_path), *ADDRESS]
    assert main(submit) == ExitCode.FAILED
    said = capsys.readouterr().err
    assert why in said
    assert "give http://HOST:8265" in said
    assert main([*submit, "teacher.stps=3"]) == ExitCode.SETTINGS


def test_the_run_directory_is_told_where_it_is_known() -> None:
    """A file or a variable of the cluster may set another."""
    assert _out_is_known(["preset=toy"])
    assert _out_is_known(["config=/not/here.yaml", "out=/shared/a"])
    assert not _out_is_known(["config=/not/here.yaml"])
    assert not _out_is_known(["out=${oc.env:GMD_NOT_SET_HERE}/a"])

"""The runtime environment that `gmd-ray submit` gives a job; no cluster is asked."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gmd_ray.tracking.runs import _code
from gmd_ray.verbs.submit import _runtime_env


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

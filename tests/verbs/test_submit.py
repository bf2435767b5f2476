"""Warnings of `gmd-ray submit` before it sends anything; jobs on a cluster: tests/ray_utils/test_submit_on_ray.py."""

from __future__ import annotations

import pytest

from gmd_ray.cli import main

ADDRESS = ["--address", "http://127.0.0.1:1"]  # nobody answers there
WARNING = "Ray's dashboard and logs will show "


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

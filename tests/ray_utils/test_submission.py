"""The log and the end of a job, as far as they need no cluster."""

from __future__ import annotations

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from gmd_ray.errors import ConfigError, ExitCode, GmdError
from gmd_ray.ray_utils.submission import _errors_in_one_line, _headers, _Lines, exit_code


def test_a_broken_connection_repeats_no_line() -> None:
    told: list[str] = []
    lines = _Lines(told.append)
    lines.begin()
    for piece in ("one\ntw", "o\nth"):
        lines.add(piece)
    lines.begin()  # the log comes again from its beginning, in other pieces
    for piece in ("one\ntwo\nt", "hree\nfo", "ur"):
        lines.add(piece)
    lines.end()
    assert "\n".join(told).split("\n") == ["one", "two", "three", "four"]


@pytest.mark.parametrize(
    ("status", "code", "kind", "meaning"),
    [
        (JobStatus.SUCCEEDED, 0, None, ExitCode.DONE),
        *((JobStatus.FAILED, int(each), "JOB_ENTRYPOINT_COMMAND_ERROR", each) for each in ExitCode if each),
        (JobStatus.FAILED, 77, "JOB_ENTRYPOINT_COMMAND_ERROR", ExitCode.FAILED),
        (JobStatus.FAILED, -9, "JOB_ENTRYPOINT_COMMAND_ERROR", ExitCode.INTERRUPTED),
        (JobStatus.FAILED, 137, "JOB_ENTRYPOINT_COMMAND_ERROR", ExitCode.INTERRUPTED),
        (JobStatus.FAILED, None, "RUNTIME_ENV_SETUP_FAILURE", ExitCode.FAILED),
        (JobStatus.FAILED, None, "JOB_SUPERVISOR_ACTOR_DIED", ExitCode.INTERRUPTED),
        (JobStatus.FAILED, 0, "JOB_SUPERVISOR_ACTOR_START_TIMEOUT", ExitCode.FAILED),
        (JobStatus.STOPPED, None, None, ExitCode.INTERRUPTED),
        (JobStatus.STOPPED, 0, None, ExitCode.INTERRUPTED),
    ],
)
def test_the_status_of_a_job(status: JobStatus, code: int | None, kind: str | None, meaning: ExitCode) -> None:
    info = JobDetails(
        type=JobType.SUBMISSION, entrypoint="x", status=status, driver_exit_code=code, error_type=kind
    )  # fmt: skip
    assert exit_code(info) is meaning


TRACEBACK = """Request failed with status code 400: Traceback (most recent call last):
  File "/x/job_head.py", line 403, in submit_job
    resp = await job_agent_client.submit_job_internal(submit_request)
ValueError: Job with submission_id nightly already exists. Please use a different submission_id..
"""


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (RuntimeError(TRACEBACK), ConfigError, "--name nightly: this cluster has a job of that name; give another, or"),
        (RuntimeError("Request failed with status code 401: Unauthorized."), ConfigError, "wants a token"),
        (OSError("403 Client Error: Forbidden for url: http://h:1/api/version"), ConfigError, "wants a token"),
        (ConnectionError("Failed to connect to Ray at address: http://127.0.0.1:14031."), GmdError, "14031; give http"),
        (RuntimeError("Traceback (most recent call last):\n  x 401\nKeyError: 'y'"), GmdError, "KeyError: 'y'; give"),
    ],
)
def test_what_a_job_server_answers_is_one_line(error: Exception, kind: type[GmdError], line: str) -> None:
    with pytest.raises(GmdError) as caught, _errors_in_one_line("http://h:1"):
        raise error
    assert type(caught.value) is kind
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_token_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    monkeypatch.delenv("RAY_JOB_HEADERS", raising=False)
    assert _headers() == {"Authorization": f"Bearer {'a' * 64}"}
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"authorization": "Basic of-a-proxy"}')
    assert _headers() == {"authorization": "Basic of-a-proxy", "X-Ray-Authorization": f"Bearer {'a' * 64}"}
    monkeypatch.setenv("RAY_JOB_HEADERS", "[1]")
    with pytest.raises(ConfigError, match="RAY_JOB_HEADERS"):
        _headers()

"""Jobs on a Ray cluster, through its job server: submitted, followed, stopped, and their exit status read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gmd_ray.errors import ConfigError, ExitCode, GmdError
from gmd_ray.text import one_line, printable

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

log = logging.getLogger("gmd_ray")

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Variable of a job's runtime environment: seconds from SIGTERM to SIGKILL when the job is stopped; Ray's own are 3."""
AGAIN_S = 1.0
"""Seconds before the log of a job that goes on is asked for again."""
TRIES = 30
"""Times that the job server may fail to answer in a row while a job is followed."""
_TOKEN, _TOKEN_BEHIND_PROXY = "Authorization", "X-Ray-Authorization"
_ENDED_BY_SIGNAL = (130, 137, 143)
"""128 + SIGINT, SIGKILL and SIGTERM, as shells report them."""
_REFUSED = re.compile(r"status code 40[13]\b|\b40[13] Client Error|Unauthorized")
"""Answers of a job server or a proxy to a request without the right token."""
_IN_USE = re.compile(r"submission_id (\S+) already exists")
"""The answer of a job server to an id that a job has."""


def connect(address: str) -> JobSubmissionClient:
    """Connect to the job server of a cluster, with the token that Ray finds on this machine and RAY_JOB_HEADERS.

    Args:
        address: `http://host:8265`, the address of the dashboard.

    Raises:
        ConfigError: RAY_JOB_HEADERS is no JSON object, or the server does not take the token.
        GmdError: nothing answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.job_submission import JobSubmissionClient

    with _errors_in_one_line(address):
        return JobSubmissionClient(address, headers=_headers())


def _headers() -> dict[str, str]:
    from ray.exceptions import AuthenticationError

    from gmd_ray.ray_utils.ray_internals import find_token

    try:
        given = json.loads(os.environ.get("RAY_JOB_HEADERS") or "{}")
    except ValueError as error:
        raise ConfigError(f"RAY_JOB_HEADERS: not a JSON object ({error})") from error
    if not isinstance(given, dict):
        raise ConfigError("RAY_JOB_HEADERS: not a JSON object")
    headers = {str(name): str(value) for name, value in given.items()}
    try:
        token = find_token()
    except AuthenticationError as error:
        raise ConfigError(f"{str(error).split('. ')[0]}") from error
    if token is not None:
        taken = any(name.lower() == _TOKEN.lower() for name in headers)  # by a proxy in front of the cluster
        headers[_TOKEN_BEHIND_PROXY if taken else _TOKEN] = f"Bearer {token}"
    return headers


@contextlib.contextmanager
def _errors_in_one_line(address: str) -> Iterator[None]:
    """Raise what Ray's client raises as an error of one line."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except (ConnectionError, RuntimeError, AuthenticationError, ValueError, OSError) as error:
        text = one_line(error)
        if "Traceback (most recent call last)" in text:  # of the job server; its last line says what is wrong
            text = printable(str(error).strip().splitlines()[-1])
        text = text.rstrip(".")
        if used := _IN_USE.search(text):
            raise ConfigError(
                f"--name {used[1]}: this cluster has a job of that name; give another, or follow it with "
                f"gmd-ray submit --follow {used[1]} --address {address}"
            ) from error
        if isinstance(error, AuthenticationError) or _REFUSED.search(text):
            raise ConfigError(
                f"--address {address}: this cluster wants a token: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to that "
                f"of the cluster (`ray get-auth-token` on its head)"
            ) from error
        raise GmdError(f"--address {address}: {text}; give http://HOST:8265 of the cluster's dashboard") from error


def submit(
    client: JobSubmissionClient,
    address: str,
    command: str,
    runtime_env: Mapping[str, Any],
    metadata: Mapping[str, str],
    name: str | None = None,
) -> str:
    """Submit a job, and return its id.

    Args:
        client: of `connect`.
        address: for messages.
        command: a line for the shell of the head node.
        runtime_env: `working_dir`, `excludes`, `env_vars` and others of Ray's.
        metadata: shown by the dashboard and `ray job list`.
        name: the id; None lets Ray choose.
    """
    with _errors_in_one_line(address):
        return str(
            client.submit_job(
                entrypoint=command, runtime_env=dict(runtime_env), metadata=dict(metadata), submission_id=name
            )
        )


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> JobDetails:
    """Pass the log of a job on until the job has ended. A connection that breaks is made again.

    Args:
        client: of `connect`.
        job: its id.
        write: gets the log in pieces of whole lines.

    Returns:
        What the job server knows of the ended job.

    Raises:
        GmdError: the job is not known, or its server is gone.
    """
    from aiohttp import ClientError

    lines, failed = _Lines(write), 0
    while True:
        try:
            client.get_job_info(job)  # says better than the log's address that there is no such job
            asyncio.run(_tail(client, job, lines))
            info = client.get_job_info(job)
            failed = 0
            if info.status.is_terminal():
                lines.end()
                return info
        except (ConnectionError, RuntimeError, OSError, ClientError) as error:
            if "does not exist" in str(error) or "404" in str(error):
                raise GmdError(f"job {job}: this cluster does not know it") from error
            failed += 1
            if failed >= TRIES:
                raise GmdError(
                    f"job {job}: its log cannot be followed ({one_line(error)}); the job may go on: follow it with "
                    f"gmd-ray submit --follow {job}"
                ) from error
        time.sleep(AGAIN_S)


class _Lines:
    """Passes on whole lines, and skips what an earlier connection has passed on."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._seen, self._due, self._rest = write, 0, 0, ""

    def begin(self) -> None:
        """Note that the log comes from its beginning."""
        self._due = 0

    def add(self, text: str) -> None:
        start, self._due = self._due, self._due + len(text)
        new = text[max(0, self._seen - start) :]
        self._seen = max(self._seen, self._due)
        whole, mark, self._rest = (self._rest + new).rpartition("\n")
        if mark:
            self._write(whole)

    def end(self) -> None:
        if self._rest:
            self._write(self._rest)
            self._rest = ""


async def _tail(client: JobSubmissionClient, job: str, lines: _Lines) -> None:
    lines.begin()
    async for text in client.tail_job_logs(job):
        lines.add(text)


def stop(client: JobSubmissionClient, job: str) -> None:
    """Ask a job to end in order."""
    try:
        client.stop_job(job)
    except (ConnectionError, RuntimeError, OSError) as error:
        log.warning("job %s could not be stopped: %s", job, one_line(error))


def exit_code(info: JobDetails) -> ExitCode:
    """Read the exit status of an ended job.

    INTERRUPTED if it was stopped, killed, or lost with its node. The driver's own status where it is one of `ExitCode`.
    """
    if info.status == "SUCCEEDED":
        return ExitCode.DONE
    status, kind = info.driver_exit_code, str(getattr(info.error_type, "value", info.error_type) or "")
    if info.status == "STOPPED" or kind.endswith("ACTOR_DIED"):
        return ExitCode.INTERRUPTED
    if status is not None and (status < 0 or status in _ENDED_BY_SIGNAL):
        return ExitCode.INTERRUPTED
    return ExitCode(status) if status in tuple(ExitCode) and status else ExitCode.FAILED

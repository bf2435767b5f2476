"""The Ray session of a run: the cluster that it finds itself on, else a private one on this machine."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from gmd_ray.config import Config
from gmd_ray.config.load import in_job
from gmd_ray.errors import GmdError

log = logging.getLogger("gmd_ray")

READ_AND_WRITE_CPUS = 0.5
"""Of the smallest stream, beside its pools (`ray_utils.capacity`)."""

# Set before ray is imported, and inherited by a private session's workers. Bars of its own would fight ours; one footer
# reader is enough for small folders; Train's controller commits checkpoints when it polls, two seconds by default
# (research/ray.md 0.1, 3).
_ENVIRONMENT = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # glibc gives the activations of a step back to the kernel and faults them in again at the next, a seventh of
    # the time of a small training step; these are its largest mmap threshold and 256 MB kept for the next step.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 1024**2),
}

_QUIET = {"log_to_driver": False, "logging_level": logging.WARNING}

SOCKET_PATH_BYTES = 107
"""Of a Unix socket on Linux, its last byte left out."""

_CHATTER = {
    "ray._private.authentication.authentication_token_setup": logging.ERROR,  # on a private session it is a warning
    "ray.data._internal.progress": logging.ERROR,  # "progress bars disabled": ours are shown
    "ray.data._internal.execution.streaming_executor": logging.WARNING,  # plans and times of each data set
}


def cluster_address(cfg: Config) -> str | None:
    """The cluster that a run joins: `ray.address`, the job's own, or RAY_ADDRESS; None where there is none."""
    return cfg.ray.address or ("auto" if in_job() or os.environ.get("RAY_ADDRESS") else None)


@contextlib.contextmanager
def ray_session(cfg: Config) -> Iterator[None]:
    """Join `ray.address` or the job's own cluster, else start a private one; left as it was found.

    A private one listens on this machine's loopback address alone, and wants a token unless RAY_AUTH_MODE=disabled.

    Raises:
        GmdError: the cluster named by `ray.address` cannot be joined, or a private one cannot be started here.
    """
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray

    if ray.is_initialized():
        yield
        return
    address = cluster_address(cfg)
    # Ray warns on stderr about things a user of this tool can do nothing about.
    for name, level in _CHATTER.items():
        logging.getLogger(name).setLevel(level)
    with contextlib.ExitStack() as stack:
        if address is not None:
            from gmd_ray.ray_utils.joining import door

            stack.enter_context(door(address))
        stack.callback(ray.shutdown)
        if address is None:
            _start(cfg)
            log.info("started a private Ray session with %g CPUs", ray.cluster_resources().get("CPU", 0))
        else:
            _join(address)
            log.info("joined the Ray cluster at %s", ray.get_runtime_context().gcs_address)
        yield


def _start(cfg: Config) -> None:
    """A private cluster of this machine alone."""
    import ray

    _check_socket_paths()
    try:
        with _on_loopback(), _quiet_core():
            ray.init(
                address="local",
                num_cpus=cfg.ray.num_cpus or enough_cpus(cfg),
                object_store_memory=cfg.ray.object_store_memory,
                include_dashboard=False,
                **_QUIET,
            )
    except OSError as error:
        raise GmdError(f"Ray cannot start: {error}; its files go below {_temp_dir()} (TMPDIR, RAY_TMPDIR)") from error
    except Exception as error:
        # Ray raises a bare Exception where its own processes take longer than its fixed 30 s to start.
        if "timed out during startup" not in str(error):
            raise
        raise GmdError("Ray did not start within 30 s: this machine is too busy; try again when it is not") from error


def _join(address: str) -> None:
    import ray

    try:
        with _quiet_core():
            ray.init(address=address, **_QUIET)
    except (ConnectionError, RuntimeError, ValueError) as error:
        causes = [str(found) for found in (error.__cause__, error) if found is not None]
        line = " ".join(causes[0].split())[:400]
        raise GmdError(f"ray.address={address}: cannot join this cluster ({line})") from error


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """For a node that starts meanwhile, Ray takes 127.0.0.1: no other machine can reach what it listens on.

    Elsewhere than on Linux it does so by itself; on Linux it puts the machine's address in the place of a 127.0.0.1
    that it is given.
    """
    from ray._private import ray_constants

    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _quiet_core() -> Iterator[None]:
    """The core of Ray in this process, which starts meanwhile, says only what ends it.

    It writes past Python's logging, and warns of every actor pool ("the actor restart will fail") and at each end.
    Whoever sets RAY_BACKEND_LOG_LEVEL hears it. Ray's other processes, which are there by then, log as ever.
    """
    from ray._private import worker

    if "RAY_BACKEND_LOG_LEVEL" in os.environ:
        yield
        return
    connect = worker.connect

    @functools.wraps(connect)
    def quietly(*args: Any, **kwargs: Any) -> None:
        os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
        try:
            with _without_lines("RAY_BACKEND_LOG_LEVEL"):  # of which it tells first
                connect(*args, **kwargs)
        finally:
            del os.environ["RAY_BACKEND_LOG_LEVEL"]

    worker.connect = quietly
    try:
        yield
    finally:
        worker.connect = connect


@contextlib.contextmanager
def _without_lines(word: str) -> Iterator[None]:
    """What is written to the terminal's standard error meanwhile comes at the end, without the lines with `word`."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            for line in held:
                if word.encode() not in line:
                    os.write(2, line)


def _temp_dir() -> str:
    """Where Ray puts the files of a session."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


def _check_socket_paths() -> None:
    """See that the names of Ray's sockets fit into what the system takes, before Ray is at work on them."""
    folder = os.path.abspath(_temp_dir())
    longest = f"{folder}/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    over = len(os.fsencode(longest)) - SOCKET_PATH_BYTES
    if over > 0:
        name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
        raise GmdError(
            f"{name}={_temp_dir()} is {over} bytes too long for the sockets of a Ray session, whose paths may have "
            f"{SOCKET_PATH_BYTES}: set RAY_TMPDIR to a folder with a short path, RAY_TMPDIR=/tmp say"
        )


def enough_cpus(cfg: Config) -> int | None:
    """CPUs to tell a private session of where this machine has too few for the smallest pools: they share them then.

    None where it has enough: Ray counts for itself.
    """
    pools = (cfg.student.pool, cfg.teacher.pool, cfg.scorer.pool)
    wanted = math.ceil(sum((pool.initial or pool.min) * pool.num_cpus for pool in pools) + READ_AND_WRITE_CPUS)
    return None if wanted <= (os.cpu_count() or 1) else wanted

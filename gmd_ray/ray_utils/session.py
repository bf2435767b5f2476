"""The Ray session of a run: the cluster that the run finds itself on, else a private one on this machine."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from typing import Any

from gmd_ray import __version__
from gmd_ray.config import Config
from gmd_ray.config.load import in_job
from gmd_ray.config.secrets import redact
from gmd_ray.errors import GmdError
from gmd_ray.ray_utils.ray_internals import CHATTER, on_loopback, quiet_core, speaks_on_stderr

log = logging.getLogger("gmd_ray")

READ_AND_WRITE_CPUS = 0.5
"""CPUs of one read and one write task, rounded up, beside the pools (`capacity.TASK_CPUS`)."""

# Set before ray is imported, and inherited by a private session's workers. Ray's progress bars would write over those
# of gmd_ray; one reader of Parquet footers is enough for small folders; Train's controller commits checkpoints when it
# polls, by default every two seconds.
_ENVIRONMENT = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # By default glibc gives the activations of a training step back to the kernel and faults them in again at the next
    # step, which takes a seventh of the time of a small step. These are glibc's largest mmap threshold, and 256 MB that
    # are kept for the next step.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 1024**2),
}

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}

SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket on Linux, without the zero byte at its end."""


def cluster_address(cfg: Config) -> str | None:
    """Return the address of the cluster that a run joins: `ray.address`, the job's own, or RAY_ADDRESS.

    None if there is none, or with `ray.enabled=false`.
    """
    if not cfg.ray.enabled:
        return None
    return cfg.ray.address or ("auto" if in_job() or os.environ.get("RAY_ADDRESS") else None)


@contextlib.contextmanager
def ray_session(cfg: Config) -> Iterator[None]:
    """Join `ray.address` or the job's own cluster, else start a private one. Leave Ray as it was found at the end.

    A private cluster listens on this machine's loopback address alone, and wants a token unless RAY_AUTH_MODE=disabled.
    With `ray.enabled=false` nothing is started, and Ray is not imported.

    Raises:
        GmdError: the cluster named by `ray.address` cannot be joined, or a private one cannot be started here.
    """
    if not cfg.ray.enabled:
        yield
        return
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray

    if ray.is_initialized():
        yield
        return
    address = cluster_address(cfg)
    for name, level in CHATTER.items():
        logging.getLogger(name).setLevel(level)
    with contextlib.ExitStack() as stack:
        if address is not None:
            from gmd_ray.ray_utils.joining import door

            stack.enter_context(door(address))
        stack.enter_context(speaks_on_stderr())
        stack.callback(ray.shutdown)
        if address is None:
            _start(cfg, _metadata(cfg))
            log.info("started a private Ray session with %g CPUs", ray.cluster_resources().get("CPU", 0))
        else:
            _join(address, _metadata(cfg))
            log.info("joined the Ray cluster at %s", ray.get_runtime_context().gcs_address)
        yield


def _start(cfg: Config, metadata: dict[str, str]) -> None:
    """Start a private cluster of this machine alone."""
    import ray
    from ray.job_config import JobConfig

    _check_socket_paths()
    try:
        with on_loopback(), quiet_core():
            ray.init(
                address="local",
                num_cpus=cfg.ray.num_cpus or enough_cpus(cfg),
                object_store_memory=cfg.ray.object_store_memory,
                include_dashboard=False,
                job_config=JobConfig(metadata=metadata),
                **_QUIET,
            )
    except OSError as error:
        raise GmdError(f"Ray cannot start: {error}; its files go below {_temp_dir()} (TMPDIR, RAY_TMPDIR)") from error
    except Exception as error:
        # Ray raises a bare Exception where its own processes take longer than its fixed 30 s to start.
        if "timed out during startup" not in str(error):
            raise
        raise GmdError("Ray did not start within 30 s: this machine is too busy; try again when it is not") from error


def _join(address: str, metadata: dict[str, str]) -> None:
    import ray
    from ray.job_config import JobConfig

    try:
        with quiet_core():
            ray.init(address=address, job_config=JobConfig(metadata=metadata), **_QUIET)
    except (ConnectionError, RuntimeError, ValueError) as error:
        causes = [str(found) for found in (error.__cause__, error) if found is not None]
        line = " ".join(causes[0].split())[:400]
        raise GmdError(f"ray.address={address}: cannot join this cluster ({line})") from error


def _metadata(cfg: Config) -> dict[str, str]:
    """Facts about the driver, for `ray list jobs` and the dashboard. A submitted job keeps its own beside them."""
    return {"gmd_ray": __version__, "out": redact(cfg.out)}


def _temp_dir() -> str:
    """Return the folder in which Ray puts the files of a session."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


def _check_socket_paths() -> None:
    """Refuse a temporary folder in which the paths of Ray's sockets would be longer than the system takes."""
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
    """Return the CPUs to tell a private session of, if this machine has too few for the smallest pools.

    The pools then share the machine's CPUs. None if it has enough: Ray counts for itself.
    """
    pools = (cfg.student.pool, cfg.teacher.pool, cfg.scorer.pool)
    wanted = math.ceil(sum((pool.initial or pool.min) * pool.num_cpus for pool in pools) + READ_AND_WRITE_CPUS)
    return None if wanted <= (os.cpu_count() or 1) else wanted

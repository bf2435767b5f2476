"""Everything that touches private names of Ray, except `blocks_in_flight`, `draining` and `rescue`.

Private names are looked up when a function is called, never when this module is imported. Where a version of Ray has
other names, the function does without: a warning says what is lost where a user would notice.
`tests/ray_utils/test_ray_internals.py` names each private thing, and fails on a version of Ray that has not got it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gmd_ray.config import Config

if TYPE_CHECKING:
    from ray.data import DataContext

log = logging.getLogger("gmd_ray")

BLOCKS_AHEAD = 16
"""Blocks in flight beyond those that the actors of a stream have."""
SHARE_KEPT_S = 30
"""Seconds that a cluster's shares are kept for a run that no longer says that it is there. A run does every
10 s."""

CHATTER = {
    # A private session without a token is a warning to Ray.
    "ray._private.authentication.authentication_token_setup": logging.ERROR,
    # "Progress bars disabled": gmd_ray shows its own.
    "ray.data._internal.progress": logging.ERROR,
    # Plans and times of each data set.
    "ray.data._internal.execution.streaming_executor": logging.WARNING,
}
"""Loggers of Ray that speak of what a user can do nothing about -> the level from which they are heard."""


# ---- streams of Ray Data


def limit_blocks_in_flight(context: DataContext, cfg: Config) -> None:
    """Bound the blocks that a stream over these pools has in flight.

    Each actor has `BLOCKS_PER_ACTOR` blocks, and one more may wait for it. `BLOCKS_AHEAD` are added for reading and
    writing.
    """
    from gmd_ray.ray_utils.pools import BLOCKS_PER_ACTOR

    try:
        from gmd_ray.ray_utils.blocks_in_flight import limit_blocks

        actors = sum(pool.max for pool in (cfg.student.pool, cfg.teacher.pool, cfg.scorer.pool))
        limit_blocks(context, BLOCKS_AHEAD + actors * (BLOCKS_PER_ACTOR + 1))
    except (ImportError, AttributeError) as error:
        log.warning("the blocks in flight are not bounded with this version of Ray (%s)", error)


def fetch_metadata_inline() -> None:
    """Make the streams of this process fetch what Ray says of a finished block in their own loop, not in a thread.

    The thread's object keeps the tasks that it waited for when a stream fails, and with them handles of live actors:
    their share of the cluster is not given back while this process lives. A block takes seconds, and its metadata a
    millisecond.
    """
    try:
        from ray.data._internal.execution import metadata_fetcher

        if not hasattr(metadata_fetcher, "_PREFETCH_ON_THREAD"):
            raise AttributeError("no _PREFETCH_ON_THREAD")
        metadata_fetcher._PREFETCH_ON_THREAD = False
    except (ImportError, AttributeError) as error:
        log.warning("after a failure, a stream may keep its actors with this version of Ray (%s)", error)


def shorten_reservation_expiry() -> None:
    """Make the streams of this process lose their share of the cluster soon after the process is killed.

    Ray Data divides a cluster among the runs on it, and a busy run reserves all of it. Ray keeps the share for three
    minutes after the driver was killed, in which the same command, given again, would do nothing. The time is a default
    argument of a constructor that only Ray calls.
    """
    name = "autoscaling_request_expire_time_s"
    try:
        from ray.data._internal.cluster_autoscaler import RateBasedClusterAutoscaler

        defaults = RateBasedClusterAutoscaler.__init__.__kwdefaults__
        defaults[name] = min(defaults[name], SHARE_KEPT_S)
    except (ImportError, AttributeError, KeyError, TypeError) as error:
        log.warning("after a kill, a run may wait three minutes with this version of Ray (%s)", error)


# ---- the cluster


def started_here() -> bool:
    """Return whether this process has started the cluster. False if Ray does not say."""
    import ray._private.worker

    node = getattr(ray._private.worker, "_global_node", None)
    return node is not None and bool(node.is_head())


def can_grow() -> bool:
    """Return whether an autoscaler may add nodes to the cluster of this process.

    A cluster that `ray.init` started here has no autoscaler. Elsewhere Ray does not say; `says_it_cannot_grow` reads
    the report that the monitor on the cluster's head writes.
    """
    if started_here():
        return False
    try:
        from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
        from ray.experimental.internal_kv import _internal_kv_get

        report = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    except (ImportError, AttributeError):
        return True
    return not says_it_cannot_grow(report)


def says_it_cannot_grow(report: bytes | None) -> bool:
    """Return whether an autoscaler's report (JSON) shows a cluster of fixed size.

    There each node is reported as a type of its own, `node_<id>`, while a configured autoscaler reports the node types
    of its configuration. A cluster of which nothing is reported yet may grow.
    """
    said: dict[str, Any] = json.loads(report or "{}")
    kinds = (said.get("autoscaler_report") or {}).get("active_nodes") or {}
    return bool(kinds) and all(kind.startswith("node_") for kind in kinds)


# ---- the start of a session


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Make a node that starts within the block take 127.0.0.1, so that no other machine can reach what it listens on.

    Ray does so by itself, except on Linux: there it replaces a 127.0.0.1 that it is given by the machine's address.
    """
    from ray._private import ray_constants

    if not hasattr(ray_constants, "ENABLE_RAY_CLUSTER"):
        log.warning("with this version of Ray, a private session may listen on this machine's network address")
        yield
        return
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def speaks_on_stderr() -> Iterator[None]:
    """Make Ray print what its processes say within the block on standard error, since standard output is for results.

    By default its warnings, such as those of a raylet, come on standard output at any moment.
    """
    from ray._private import worker

    told = getattr(worker, "print_worker_logs", None)
    if told is None:
        yield
        return

    @functools.wraps(told)
    def on_stderr(data: Any, print_file: Any, *args: Any, **kwargs: Any) -> None:
        told(data, sys.stderr, *args, **kwargs)

    worker.print_worker_logs = on_stderr
    try:
        yield
    finally:
        worker.print_worker_logs = told


@contextlib.contextmanager
def quiet_core() -> Iterator[None]:
    """Make the core of Ray in this process, which starts within the block, log only what ends it.

    The core writes past Python's logging, and warns of every actor pool ("the actor restart will fail") and at each
    end of a session. RAY_BACKEND_LOG_LEVEL in the environment brings its lines back. Ray's other processes have started
    by the time that this one connects, and log as ever.
    """
    from ray._private import worker

    if "RAY_BACKEND_LOG_LEVEL" in os.environ or not hasattr(worker, "connect"):
        yield
        return
    connect = worker.connect

    @functools.wraps(connect)
    def quietly(*args: Any, **kwargs: Any) -> None:
        os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
        try:
            with _without_lines("RAY_BACKEND_LOG_LEVEL"):  # the core says first that it is set
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
    """Hold back what is written to standard error within the block, and write it at the end without lines with `word`.

    The file descriptor is redirected, since the core of Ray does not write through Python.
    """
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


# ---- joining a cluster


def resolve_address(address: str) -> str | None:
    """Return the host:port that Ray takes an address for; None where "auto" finds no cluster.

    Raises:
        ValueError, ConnectionError, OSError: it is no address.
    """
    try:
        from ray._private.services import canonicalize_bootstrap_address
    except ImportError:
        return None if address == "auto" else address
    place: str | None = canonicalize_bootstrap_address(address)
    return place


def can_set_authentication() -> bool:
    """Return whether this version of Ray lets a process choose its authentication after the core was loaded."""
    try:
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
    except ImportError:
        return False
    return hasattr(Config, "initialize") and hasattr(AuthenticationTokenLoader, "instance")


def reread_environment() -> None:
    """Make the core of Ray read its environment again. It does so once by itself, when it is loaded."""
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")


def find_token() -> str | None:
    """Return the token that Ray finds where it looks for one, whatever RAY_AUTH_MODE says; None if there is none.

    Raises:
        AuthenticationError: RAY_AUTH_TOKEN_PATH is no file, or an empty one.
    """
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    if not loader.has_token(ignore_auth_mode=True):
        return None
    token: str = loader.get_raw_token(ignore_auth_mode=True)
    return token

"""A lock for promotions: reading the champion and moving its alias are several requests to MLflow."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gmd_ray.config.secrets import redact
from gmd_ray.tracking.client import TrackingError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

TAG = "gmd_ray.promoting"
"""Tag of a registered model on a server: id, time and host of the promotion at work."""
LEASE_S = 60.0
"""Age in seconds after which a promotion on a server counts as dead; it takes a few requests."""
SETTLE_S = 0.5
"""Seconds to wait before reading the tag again: longer than another promotion needs between reading and setting it."""


@contextlib.contextmanager
def turn(client: MlflowClient, uri: str, model: str, timeout_s: float = 2 * LEASE_S) -> Iterator[None]:
    """Hold the lock of promotions of `model` while a `with` block runs.

    For a database in a local file the lock is a file lock beside it, which the system frees if its holder dies. A
    server offers no lock; there it is a tag of the model. Two promotions that set the tag within the same half second
    may both take it.

    Raises:
        TrackingError: the lock was not free within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    database = _local_database(uri)
    if database is not None:
        with _file_lock(database.with_name(f"{database.name}.promotion"), model, uri, deadline):
            yield
        return
    mine = uuid.uuid4().hex
    while not _take(client, model, mine):
        if time.monotonic() > deadline:
            raise _busy(model, uri)
        time.sleep(SETTLE_S)
    try:
        yield
    finally:
        if _holder(client, model)[0] == mine:
            client.delete_registered_model_tag(model, TAG)


def _local_database(uri: str) -> Path | None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except ArgumentError:
        return None
    if not url.drivername.startswith("sqlite") or not url.database:
        return None
    path = Path(url.database).absolute()
    return path if path.parent.is_dir() else None


@contextlib.contextmanager
def _file_lock(path: Path, model: str, uri: str, deadline: float) -> Iterator[None]:
    with open(path, "ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # this file system has no locks
                    break
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                if time.monotonic() > deadline:
                    raise _busy(model, uri) from error
                time.sleep(0.05)
        yield


def _take(client: MlflowClient, model: str, mine: str) -> bool:
    holder, since = _holder(client, model)
    if holder is not None and time.time() - since < LEASE_S:
        return False
    client.set_registered_model_tag(model, TAG, f"{mine} {time.time():.0f} {os.uname().nodename}")
    time.sleep(SETTLE_S)
    return _holder(client, model)[0] == mine


def _holder(client: MlflowClient, model: str) -> tuple[str | None, float]:
    words = client.get_registered_model(model).tags.get(TAG, "").split()
    try:
        return words[0], float(words[1])
    except (IndexError, ValueError):
        return None, 0.0


def _busy(model: str, uri: str) -> TrackingError:
    return TrackingError(f"MLflow at {redact(uri)}: another promotion of {model} has not ended; try again later")

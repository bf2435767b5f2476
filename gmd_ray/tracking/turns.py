"""One promotion of a model at a time: reading the champion and moving the alias are several requests to MLflow."""

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
"""Of a registered model, on servers: who is at it, and since when."""
LEASE_S = 60.0
"""After that a promotion on a server counts as dead; one takes a few requests."""
SETTLE_S = 0.5
"""Longer than another promotion needs between seeing no tag and setting its own."""


@contextlib.contextmanager
def turn(client: MlflowClient, uri: str, model: str, timeout_s: float = 2 * LEASE_S) -> Iterator[None]:
    """Wait until no other promotion of `model` is at work, and keep others waiting.

    Beside a database that is a local file, by a lock on a file, which its holder's death frees. A server has no such
    thing: there a tag of the model says who is at it, which two that write it in the same half second may both read
    as their own.

    Raises:
        TrackingError: it is not free in `timeout_s`.
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
                if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
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

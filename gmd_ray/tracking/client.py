"""Reaching MLflow: addresses, time limits, and its errors as one line for the user."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from gmd_ray.config.places import sqlite_path, sqlite_url
from gmd_ray.config.secrets import redact, without_credentials
from gmd_ray.errors import GmdError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_DEFAULTS = {
    # MLflow's own (7 retries, 120 s each) keep a run with a mistyped server waiting for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    # Usage reports to MLflow's makers are for whoever runs gmd_ray to switch on.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Standard output belongs to the command that the user ran.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class TrackingError(GmdError):
    """MLflow cannot be reached, or refuses what it is asked."""


def connect(uri: str) -> MlflowClient:
    """A client for tracking and registry at `uri`; reaches nothing yet.

    Sets MLflow's environment variables for retries, telemetry and prints where the user has not.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def is_remote(url: str) -> bool:
    """Whether `url` names something other than a local path (file:// is local)."""
    scheme = url.partition("://")[0] if "://" in url else ""
    return scheme not in ("", "file")


def local_path(url: str) -> Path:
    """The absolute path of a local `url`."""
    return Path(unquote(url[len("file://") :]) if url.startswith("file://") else url).absolute()


def default_uri(out: str) -> str:
    """The sqlite database in a local run directory.

    Raises:
        TrackingError: where `out` is remote; sqlite works on local files only.
    """
    if is_remote(out):
        raise TrackingError(f"out={out} is remote, where MLflow cannot keep its database: set tracking.uri to a server")
    return sqlite_url(str(local_path(out) / "mlflow.db"))


def artifact_location(uri: str, out: str) -> str | None:
    """Where a new experiment keeps its files: the server's choice, beside an sqlite file, else under `out`."""
    if uri.startswith(("http://", "https://")):
        return None
    if (database := sqlite_path(uri)) is not None:
        return (Path(database).absolute().parent / "mlartifacts").as_uri()
    if is_remote(out):
        return f"{without_credentials(out).partition('?')[0].rstrip('/')}/mlartifacts"
    return (local_path(out) / "mlartifacts").as_uri()


def store_errors() -> tuple[type[Exception], ...]:
    """What MLflow raises when a store does not answer or refuses: its own, the network's, and loaded cloud clients'."""
    from mlflow.exceptions import MlflowException

    found: list[type[Exception]] = [MlflowException, OSError]
    for module, names in (
        ("sqlalchemy.exc", ("SQLAlchemyError",)),
        ("botocore.exceptions", ("BotoCoreError", "ClientError")),
        ("boto3.exceptions", ("Boto3Error",)),
        ("google.api_core.exceptions", ("GoogleAPIError",)),
        ("azure.core.exceptions", ("AzureError",)),
    ):
        if module.split(".")[0] in sys.modules:
            with contextlib.suppress(ImportError):
                found += [getattr(importlib.import_module(module), name) for name in names]
    return tuple(found)


# A file that is gone, or a place that may not be written to: no waiting mends these.
_REFUSED = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


def is_refusal(error: Exception) -> bool:
    """Whether asking again cannot help: the request is wrong, as opposed to the server being away."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    else:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is None:
            return isinstance(error, _REFUSED)
    return 400 <= status < 500 and status not in (408, 429)


@contextlib.contextmanager
def tracking_errors(uri: str, doing: str) -> Iterator[None]:
    """Turn whatever MLflow raises inside into one line.

    Raises:
        TrackingError: naming the server, what was being done, and how to go on without it.
    """
    try:
        yield
    except store_errors() as error:
        reason = redact(" ".join(str(error).split()))[:200]
        raise TrackingError(
            f"MLflow at {redact(uri)} failed while {doing}: {reason} "
            "(check tracking.uri, or set tracking.enabled=false)"
        ) from error

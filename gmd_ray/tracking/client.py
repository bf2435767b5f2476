"""Connecting to MLflow: addresses, time limits, and its errors as one line for the user."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from gmd_ray.config import Config
from gmd_ray.config.places import sqlite_path, sqlite_url
from gmd_ray.config.secrets import redact, without_credentials
from gmd_ray.errors import GmdError
from gmd_ray.storage import is_remote
from gmd_ray.text import one_line

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_DEFAULTS = {
    # MLflow's defaults (7 retries, 120 s each) let a run with a mistyped server wait for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    # Standard error is for the log and for this package's own progress.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # The user of gmd_ray decides about usage reports to MLflow's developers.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Standard output is for the result of the user's command.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class TrackingError(GmdError):
    """MLflow cannot be reached, or refuses a request."""


def connect(uri: str) -> MlflowClient:
    """Make a client for tracking and registry at `uri`, without connecting yet.

    Environment variables of MLflow for retries, telemetry and prints are set unless the user has set them.

    Raises:
        IsADirectoryError: the database is a directory, for which MLflow would try again for 100 s.
    """
    if (database := sqlite_path(uri)) is not None and Path(database).is_dir():
        raise IsADirectoryError(f"{database} is a directory, not a database")
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def local_path(url: str) -> Path:
    """The absolute path of a local `url`."""
    return Path(unquote(url[len("file://") :]) if url.startswith("file://") else url).absolute()


def default_uri(out: str) -> str:
    """The URI of the sqlite database in a local run directory.

    Raises:
        TrackingError: `out` is remote; sqlite needs a local file.
    """
    if is_remote(out):
        raise TrackingError(
            f"out={out} is remote, and MLflow's sqlite database needs a local file; set tracking.uri to a server"
        )
    return sqlite_url(str(local_path(out) / "mlflow.db"))


def tracking_uri(cfg: Config) -> str:
    """The address of MLflow: `tracking.uri`, else MLFLOW_TRACKING_URI, else the database below `out`.

    Raises:
        TrackingError: as `default_uri`.
    """
    return cfg.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(cfg.out)


def artifact_location(uri: str, out: str) -> str | None:
    """The artifact location of a new experiment.

    Returns:
        None for a server, which chooses itself; a folder beside an sqlite file; a folder under `out` otherwise.
    """
    if uri.startswith(("http://", "https://")):
        return None
    if (database := sqlite_path(uri)) is not None:
        return (Path(database).absolute().parent / "mlartifacts").as_uri()
    if is_remote(out):
        return f"{without_credentials(out).partition('?')[0].rstrip('/')}/mlartifacts"
    return (local_path(out) / "mlartifacts").as_uri()


def name_filter(model: str) -> str:
    """The search filter for a registered model of exactly this name."""
    return f'name="{model}"' if "'" in model else f"name='{model}'"


def store_errors() -> tuple[type[Exception], ...]:
    """Exceptions of a store that does not answer or refuses: MLflow's, the network's, and those of loaded libraries."""
    from mlflow.exceptions import MlflowException

    errors: list[type[Exception]] = [MlflowException, OSError]
    for module, names in (
        ("sqlalchemy.exc", ("SQLAlchemyError",)),
        ("botocore.exceptions", ("BotoCoreError", "ClientError")),
        ("boto3.exceptions", ("Boto3Error",)),
        ("google.api_core.exceptions", ("GoogleAPIError",)),
        ("azure.core.exceptions", ("AzureError",)),
    ):
        if module.split(".")[0] in sys.modules:
            with contextlib.suppress(ImportError):
                errors += [getattr(importlib.import_module(module), name) for name in names]
    return tuple(errors)


_REFUSED = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
"""Errors of the file system that waiting does not cure."""


_PASSING = (401, 403, 408, 429)
"""HTTP statuses that pass: a token that is renewed, a time limit, too many requests."""


def is_refusal(error: Exception) -> bool:
    """Return True if repeating the request cannot help, because it is wrong and not because the server is away."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    else:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is None:
            return isinstance(error, _REFUSED)
    return 400 <= status < 500 and status not in _PASSING


@contextlib.contextmanager
def tracking_errors(uri: str, doing: str) -> Iterator[None]:
    """Turn exceptions of MLflow in a `with` block into a TrackingError of one line.

    Args:
        uri: address of the server.
        doing: what the block does, as in "registering the model".

    Raises:
        TrackingError: MLflow failed; the message names the server and says how to run without it.
    """
    try:
        yield
    except store_errors() as error:
        reason = redact(one_line(error, 200))
        raise TrackingError(
            f"MLflow at {redact(uri)} failed while {doing}: {reason} "
            "(check tracking.uri, or set tracking.enabled=false)"
        ) from error

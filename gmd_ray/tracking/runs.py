"""The MLflow run of a run directory."""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gmd_ray
from gmd_ray.config import Config
from gmd_ray.config.load import in_job
from gmd_ray.config.secrets import redact
from gmd_ray.hashing import path_digest
from gmd_ray.progress import NullRecorder
from gmd_ray.storage import open_filesystem
from gmd_ray.tracking.client import (
    TrackingError,
    artifact_location,
    is_remote,
    local_path,
    tracking_errors,
    tracking_uri,
)
from gmd_ray.tracking.outbox import Outbox
from gmd_ray.tracking.recorder import Before, MlflowRecorder

if TYPE_CHECKING:
    from mlflow.entities import RunInfo

log = logging.getLogger("gmd_ray.tracking")

MEMO = "mlflow_run.json"
"""File in the run directory with the id of its MLflow run."""


@contextlib.contextmanager
def start_run(cfg: Config, resolved: Mapping[str, Any]) -> Iterator[MlflowRecorder | NullRecorder]:
    """Open the parent run of `cfg.out`: a new one, or the one that an earlier command made for this directory.

    Without `tracking.uri` the run is kept in `<out>/mlflow.db` and its files in `<out>/mlartifacts`.

    For a resumed run, changed settings are sent when the command ends, so that a refused command leaves the run as it
    was. A run that was made for a refused command is deleted.

    A server that fails after the start does not stop the run: figures are kept and sent when it answers again, and
    the log names those that were never sent.

    Args:
        cfg: the settings.
        resolved: the merged settings as a nested mapping; they become parameters and the artifact `config.json`.

    Raises:
        TrackingError: MLflow cannot be reached at the start (within about a minute), or refuses the experiment.
    """
    if not cfg.tracking.enabled:
        yield NullRecorder()
        return
    uri = tracking_uri(cfg)
    if not is_remote(cfg.out):
        local_path(cfg.out).mkdir(parents=True, exist_ok=True)
    outbox = Outbox(uri)
    # MLflow logs the creation of its database at level INFO, table by table.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    with tracking_errors(uri, "starting the run"):
        run_id, before = _open_run(cfg, outbox)
    recorder = MlflowRecorder(uri, run_id, outbox=outbox, before=before)
    log.info("MLflow run %s in experiment %r at %s", run_id, cfg.tracking.experiment, redact(uri))

    def send_settings() -> None:
        recorder.tags(_origin(cfg))
        recorder.params(resolved)
        recorder.text(json.dumps(resolved, indent=2, default=str), "config.json")

    if before is None:
        send_settings()
        outbox.filled_runs.clear()
    try:
        with recorder.ending(None if before is None else send_settings):
            yield recorder
    finally:
        if recorder.deleted:
            _forget_memo(cfg.out)
        outbox.close()


def run_id_of(out: str) -> str | None:
    """The id of the MLflow run of a run directory; None if it has none."""
    return _read_memo(out).get("run_id")


def _open_run(cfg: Config, outbox: Outbox) -> tuple[str, Before | None]:
    """Find or make the run; return its id, and its earlier state if it existed."""
    client = outbox.client
    experiment = client.get_experiment_by_name(cfg.tracking.experiment)
    if experiment is None:
        experiment_id = client.create_experiment(cfg.tracking.experiment, artifact_location(outbox.uri, cfg.out))
    elif experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"tracking.experiment={cfg.tracking.experiment!r} was deleted at {redact(outbox.uri)}: "
            "restore it with `mlflow experiments restore`, or choose another name"
        )
    else:
        experiment_id = experiment.experiment_id
    known = _read_memo(cfg.out)
    if known.get("uri") == redact(outbox.uri) and known.get("experiment_id") == experiment_id:
        run = _find_run(outbox, experiment_id, known["run_id"])
        if run is not None:
            client.update_run(run.run_id, status="RUNNING")
            return run.run_id, Before(run.status, run.end_time)
        log.warning("MLflow run %s of this run directory is gone; a new one takes its place", known["run_id"])
    name = redact(cfg.out).rstrip("/").rsplit("/", 1)[-1]
    run_id = client.create_run(experiment_id, run_name=name).info.run_id
    _write_memo(cfg.out, {"uri": redact(outbox.uri), "experiment_id": experiment_id, "run_id": run_id})
    return run_id, None


def _find_run(outbox: Outbox, experiment_id: str, run_id: str) -> RunInfo | None:
    """The facts about a run; None if it does not exist or is deleted."""
    runs = outbox.client.search_runs([experiment_id], f"attributes.run_id = '{run_id}'", max_results=1)
    return runs[0].info if runs else None


def _read_memo(out: str) -> dict[str, str]:
    filesystem, root = open_filesystem(out)
    try:
        with filesystem.open_input_stream(f"{root}/{MEMO}") as file:
            memo = json.loads(file.read())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise TrackingError(f"{out}/{MEMO} is damaged ({error}): delete it to start a new MLflow run") from error
    return dict(memo)


def _write_memo(out: str, memo: Mapping[str, str]) -> None:
    filesystem, root = open_filesystem(out)
    with filesystem.open_output_stream(f"{root}/{MEMO}") as file:
        file.write(json.dumps(memo, indent=2).encode())


def _forget_memo(out: str) -> None:
    filesystem, root = open_filesystem(out)
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(f"{root}/{MEMO}")


def _origin(cfg: Config) -> dict[str, str]:
    """Tags for the origin of the run: code, user and models."""
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": Path(sys.argv[0]).name or "python",
        "gmd_ray.version": gmd_ray.__version__,
        "gmd_ray.out": cfg.out,
    }
    if commit := _git_commit():
        tags["mlflow.source.git.commit"] = commit
    if cfg.teacher.path:
        tags["teacher.path"] = _submitted(cfg.teacher.path)
    if cfg.student.path:
        tags["student.path"] = _submitted(cfg.student.path)
        if Path(cfg.student.path).exists():
            tags["student.sha256"] = path_digest(cfg.student.path)
    return tags


def _submitted(path: str) -> str:
    """The path relative to the submitted directory, for a path in a job's working directory, which Ray deletes."""
    here = Path.cwd()
    if in_job() and Path(path).is_relative_to(here):
        return Path(path).relative_to(here).as_posix()
    return path


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have a user id without a name
        return "unknown"


def _git_commit() -> str | None:
    """The git commit of the checkout that this package is imported from; None if it is installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

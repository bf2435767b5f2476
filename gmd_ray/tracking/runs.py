"""The MLflow run of a run directory."""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gmd_ray
from gmd_ray.config import Config
from gmd_ray.config.load import in_job
from gmd_ray.config.places import below
from gmd_ray.config.secrets import redact
from gmd_ray.errors import GmdError
from gmd_ray.hashing import path_digest
from gmd_ray.progress import NullRecorder
from gmd_ray.storage import is_remote, open_filesystem
from gmd_ray.tracking.client import (
    TrackingError,
    artifact_location,
    default_uri,
    is_refusal,
    local_path,
    tracking_errors,
    tracking_uri,
)
from gmd_ray.tracking.outbox import Outbox
from gmd_ray.tracking.recorder import Before, MlflowRecorder
from gmd_ray.tracking.system import sampling
from gmd_ray.weights import node_copy

if TYPE_CHECKING:
    from mlflow.entities import RunInfo

log = logging.getLogger("gmd_ray.tracking")

COMMIT_VARIABLE = "GMD_RAY_GIT_COMMIT"
"""Environment variable with the git commit of the code, where no checkout tells it (`checkout_commit`)."""
CHANGED = "+changes"
"""End of a commit in that variable whose checkout differs from it."""
EXPERIMENT_TAGS = {
    # The user interface then opens with the table of runs, not with the view for language models.
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": (
        "Runs of gmd-ray, one for each run directory, with a child run for each stage. "
        "Columns to show: `gain/target/<metric>` is the adapted student's gain over the baseline on the target test "
        "set, positive where it is better, with `/low` and `/high` as its 95 % interval; sort by it. "
        "`gain/source/<metric>` says what it has forgotten. The registered versions and their champion are under "
        "Models; `gmd-ray history` says who promoted them and why."
    ),
}
"""Tags of a new experiment."""
MEMO = "mlflow_run.json"
"""File in the run directory with the id of its MLflow run."""


@contextlib.contextmanager
def start_run(cfg: Config, resolved: Mapping[str, Any]) -> Iterator[MlflowRecorder | NullRecorder]:
    """Open the parent run of `cfg.out`: a new one, or the one that an earlier command made for this directory.

    Without `tracking.uri` the run is kept in `<out>/mlflow.db` and its files in `<out>/mlartifacts`.

    For a resumed run, changed settings are sent when the command ends, so that a refused command leaves the run as it
    was. A run that was made for a refused command is deleted.

    A server that fails after the start does not stop the run: figures are kept and sent when it answers again. What
    could not be sent when the run ends is kept below `out`, where the next command on this directory finds it; the
    recorder's `unsent` names it. A run that goes on does so without a server, too.

    Args:
        cfg: the settings.
        resolved: the merged settings as a nested mapping; they become parameters and the artifact `config.json`.

    Raises:
        TrackingError: MLflow cannot be reached at the start of a new run (within about a minute), or refuses the
            experiment.
    """
    if not cfg.tracking.enabled:
        yield NullRecorder()
        return
    uri = tracking_uri(cfg)
    if not is_remote(cfg.out):
        local_path(cfg.out).mkdir(parents=True, exist_ok=True)
    outbox = Outbox(uri, kept_folder(cfg.out))
    # MLflow logs the creation of its database at level INFO, table by table.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    run_id, before = _begin(cfg, outbox)
    if waiting := outbox.take_kept(None if before is None else run_id):
        log.info("sending %d entries that MLflow has missed", waiting)
    recorder = MlflowRecorder(uri, run_id, outbox=outbox, before=before)
    log.info("MLflow run %s in experiment %r at %s", run_id, cfg.tracking.experiment, redact(uri))

    settings = _submitted_paths(resolved)

    def send_settings() -> None:
        recorder.tags(_origin(cfg))
        recorder.params(settings)
        recorder.text(json.dumps(settings, indent=2, default=str), "config.json")

    if before is None:
        send_settings()
        outbox.filled_runs.clear()
    try:
        with (
            recorder.ending(None if before is None else send_settings),
            sampling(outbox, run_id, cfg.tracking.system_metrics_interval_s),
        ):
            yield recorder
    finally:
        if recorder.deleted:
            _forget_memo(cfg.out)
        outbox.close()


def run_id_of(out: str) -> str | None:
    """The id of the MLflow run of a run directory; None if it has none."""
    return _read_memo(out).get("run_id")


def send_kept(cfg: Config) -> tuple[int, str]:
    """Send what MLflow has missed of the run directory `cfg.out`.

    Returns:
        the number of entries that were waiting, and what could not be sent, in words (empty if all was).
    """
    outbox = Outbox(tracking_uri(cfg), kept_folder(cfg.out))
    waiting = outbox.take_kept()
    outbox.close()
    return waiting, outbox.unsent


def kept_folder(out: str) -> str:
    """The folder of a run directory for what MLflow has missed."""
    return below(out, "mlflow_unsent")


def _begin(cfg: Config, outbox: Outbox) -> tuple[str, Before | None]:
    """Find or make the run. A run that this directory knows goes on even if MLflow does not answer now."""
    try:
        with tracking_errors(outbox.uri, "starting the run"):
            return _open_run(cfg, outbox)
    except TrackingError as error:
        known, cause = _read_memo(cfg.out), error.__cause__
        away = isinstance(cause, Exception) and not is_refusal(cause)
        if not away or known.get("uri") != redact(outbox.uri):
            raise
        log.warning("%s; the run goes on as %s, and what MLflow misses is kept", error, known["run_id"])
        return known["run_id"], Before("RUNNING", None)


def _open_run(cfg: Config, outbox: Outbox) -> tuple[str, Before | None]:
    """Find or make the run; return its id, and its earlier state if it existed."""
    client = outbox.client
    experiment = client.get_experiment_by_name(cfg.tracking.experiment)
    if experiment is None:
        experiment_id = client.create_experiment(
            cfg.tracking.experiment, artifact_location(outbox.uri, cfg.out), EXPERIMENT_TAGS
        )
    elif experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"tracking.experiment={cfg.tracking.experiment!r} was deleted at {redact(outbox.uri)}: "
            "restore it with `mlflow experiments restore`, or choose another name"
        )
    else:
        experiment_id = experiment.experiment_id
        here = artifact_location(outbox.uri, cfg.out)
        own = not is_remote(cfg.out) and outbox.uri == default_uri(cfg.out)
        if own and here != experiment.artifact_location:
            log.warning(
                "MLflow's files go on to %s, where its database was made, and not beside it: MLflow keeps full paths, "
                "so move a run directory back, or give tracking.uri=sqlite:///FILE for a new database",
                redact(str(experiment.artifact_location)),
            )
    known = _read_memo(cfg.out)
    same = known.get("uri") == redact(outbox.uri) and known.get("experiment_id") == experiment_id
    if "run_id" in known:  # the server may have another address by now, as seen from another machine
        run = _find_run(outbox, experiment_id, known["run_id"])
        if run is not None:
            client.update_run(run.run_id, status="RUNNING")
            return run.run_id, Before(run.status, run.end_time)
        if same:
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
        "gmd_ray.out": _submitted(cfg.out),
    }
    tags |= _code()
    if cfg.teacher.path:
        tags["teacher.path"] = _submitted(cfg.teacher.path)
    if cfg.student.path:
        tags["student.path"] = _submitted(cfg.student.path)
        with contextlib.suppress(GmdError):  # a URL that is away; the run itself tells that
            if (student := node_copy(cfg.student.path)).exists():
                tags["student.sha256"] = path_digest(student)
    return tags


def _submitted(path: str) -> str:
    """The path relative to the submitted directory, for a path in a job's working directory, which Ray deletes."""
    here = Path.cwd()
    if in_job() and Path(path).is_relative_to(here):
        return Path(path).relative_to(here).as_posix()
    return path


def _submitted_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with `_submitted` applied to every text: a job that is submitted again has the same ones."""
    if not in_job():
        return dict(settings)
    return {
        key: _submitted_paths(value)
        if isinstance(value, Mapping)
        else _submitted(value)
        if isinstance(value, str)
        else value
        for key, value in settings.items()
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have a user id without a name
        return "unknown"


def _code() -> dict[str, str]:
    """Tags for the git commit of this package: of its checkout, of its installation, or as GMD_RAY_GIT_COMMIT says.

    An image or a submitted job holds no checkout, so that `cluster/Dockerfile` or `gmd-ray submit` sets the variable.
    """
    if found := os.environ.get(COMMIT_VARIABLE) or checkout_commit(Path(__file__).resolve().parents[2]):
        commit = found.removesuffix(CHANGED)
        dirty = {"gmd_ray.git_dirty": "true"} if commit != found else {}
        return {"mlflow.source.git.commit": commit, **dirty}
    with contextlib.suppress(PackageNotFoundError, ValueError):
        origin = json.loads(distribution("gmd_ray").read_text("direct_url.json") or "{}")
        if commit := origin.get("vcs_info", {}).get("commit_id"):
            return {"mlflow.source.git.commit": str(commit)}
    return {}


def checkout_commit(root: Path) -> str:
    """The git commit of a checkout, ending in `CHANGED` where its `gmd_ray/` differs from it; empty without git."""
    if not (root / ".git").exists():
        return ""
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--", "gmd_ray")
    return f"{commit}{CHANGED}" if commit and changes else commit


def _git(root: Path, *words: str) -> str:
    """The output of a git command; empty if it fails."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()

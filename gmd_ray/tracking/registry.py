"""Model versions of adapted students, and their promotion from `challenger` to `champion`."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gmd_ray
from gmd_ray.config import Config
from gmd_ray.config.places import sqlite_path
from gmd_ray.hashing import path_digest
from gmd_ray.pairstore.manifest import read_manifest
from gmd_ray.pairstore.schema import rows_dataset
from gmd_ray.pairstore.store import PairStore, store_url
from gmd_ray.progress import NullRecorder
from gmd_ray.storage import open_filesystem
from gmd_ray.teachers import teacher_licence
from gmd_ray.tracking.client import (
    TrackingError,
    connect,
    default_uri,
    is_remote,
    local_path,
    tracking_errors,
)
from gmd_ray.tracking.promotion import CANDIDATE, Verdict, judge_licence, judge_promotion, read_champion
from gmd_ray.tracking.recorder import MlflowRecorder
from gmd_ray.tracking.runs import run_id_of
from gmd_ray.tracking.turns import turn

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from gmd_ray.evaluation import Evaluation

log = logging.getLogger("gmd_ray.tracking")

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous_champion"


@dataclass(frozen=True)
class Decision:
    """The decision of the promotion gates about a version."""

    promoted: bool
    reasons: list[str]
    """One line per gate, in the order of the settings, then one per comparison with the champion, then one about the
    teacher's licence if it is asked for. Lines that refuse begin with `refused`; lines about figures that cannot be
    compared begin with `not compared`."""
    version: str | None
    """Number of the version; None if the run is not tracked."""


def register(
    cfg: Config, recorder: MlflowRecorder | NullRecorder, student_path: str, evaluation: Evaluation
) -> str | None:
    """Make the file (or directory) at `student_path` a version of `cfg.tracking.model`, under the alias `challenger`.

    The file becomes the artifact `student/<first 12 digits of its sha256>/<file name>` of the recorder's run, so that
    a run directory resumed with other settings cannot change the file of an earlier version. The same file from the
    same run gives the same version again. Tags: `sha256`, `run_id`, `file`, fingerprints of the models that made it
    (`teacher`, `student`, `scorer`), the licence class of the teacher and its source (`teacher.licence`,
    `teacher.licence_source`), counts of the pair store (`pairs.*`), and for each test set its digest (`test_set.*`) and
    the student's means (`metric.<dataset>.<metric>`).

    Returns:
        The number of the version, as a string; None if the run is not tracked.

    Raises:
        TrackingError: MLflow refuses, or cannot be reached.
    """
    if not isinstance(recorder, MlflowRecorder):
        return None
    model, uri, run_id = cfg.tracking.model, recorder.uri, recorder.run_id
    client = connect(uri)
    with _local_file(student_path) as path, tracking_errors(uri, f"registering {model}"):
        digest = path_digest(path)
        tags = {"sha256": digest, "run_id": run_id, "file": path.name, "gmd_ray.version": gmd_ray.__version__}
        tags |= _lineage(cfg) | _licence(cfg) | _measured(evaluation)
        version = _same_version(client, model, run_id, digest)
        if version is None:
            folder = f"student/{digest[:12]}"
            client.log_artifact(run_id, str(path), folder)
            _create_model(client, model)
            source = f"{client.get_run(run_id).info.artifact_uri}/{folder}"
            version = str(client.create_model_version(model, source, run_id=run_id, tags=tags).version)
            log.info("registered %s version %s", model, version)
        else:
            for key, value in tags.items():
                client.set_model_version_tag(model, version, key, value)
            log.info("%s version %s holds this file already", model, version)
        client.set_registered_model_alias(model, CHALLENGER, version)
    recorder.tags({"registered_version": version})
    return version


def promote(
    cfg: Config, recorder: MlflowRecorder | NullRecorder, version: str | None, evaluation: Evaluation
) -> Decision:
    """Move the alias `champion` to `version` if every gate of `cfg.tracking.gates` holds, and no champion is better.

    With `tracking.require_commercial_teacher`, the teacher's licence is one more gate.

    `promotion.judge_promotion` decides. The champion before keeps the alias `previous_champion`, and the version's tag
    `promotion` records the decision. Promotions of one model wait for each other.

    Raises:
        TrackingError: MLflow refuses, cannot be reached, or another promotion does not end.
    """
    if not isinstance(recorder, MlflowRecorder) or version is None:
        return Decision(False, ["tracking.enabled=false: nothing was registered, so nothing can be promoted"], None)
    model, uri = cfg.tracking.model, recorder.uri
    client = connect(uri)
    with tracking_errors(uri, f"promoting {model} version {version}"), turn(client, uri, model):
        champion = _champion(client, model)
        if champion is not None and str(champion.version) == version:
            return Decision(True, [f"version {version} is the champion already"], version)
        verdicts = judge_promotion(cfg.tracking.gates, evaluation, champion and read_champion(client, champion))
        if cfg.tracking.require_commercial_teacher:
            verdicts = [*verdicts, judge_licence(teacher_licence(cfg.teacher))]
        promoted, reasons = all(may for may, _ in verdicts), [reason for _, reason in verdicts]
        if promoted:
            if champion is not None:
                client.set_registered_model_alias(model, PREVIOUS, champion.version)
            client.set_registered_model_alias(model, CHAMPION, version)
        outcome = _outcome(verdicts)
        client.set_model_version_tag(model, version, "promotion", outcome)
    recorder.tags({"promotion": outcome})
    for reason in reasons:
        log.info("promotion gate: %s", reason)
    log.info("%s version %s %s", model, version, "is champion now" if promoted else "stays challenger")
    return Decision(promoted, reasons, version)


def judge(cfg: Config, evaluation: Evaluation) -> Decision:
    """Judge a student by the gates of the settings as `promote` would, and change nothing.

    `promoted` says whether the run's own version is the champion now, which the verdicts do not change.

    Raises:
        TrackingError: MLflow refuses, or cannot be reached.
    """
    champion, own = None, None
    if cfg.tracking.enabled:
        uri, model = cfg.tracking.uri or default_uri(cfg.out), cfg.tracking.model
        database = sqlite_path(uri)
        if database is None or Path(database).is_file():  # a database is not made for this
            client = connect(uri)
            with tracking_errors(uri, f"reading the versions of {model}"):
                if client.search_registered_models(f"name='{model}'"):
                    found = _champion(client, model)
                    champion = found and read_champion(client, found)
                    own = _version_of(client, model, cfg.out)
    is_champion = champion is not None and champion.version == own
    verdicts = judge_promotion(cfg.tracking.gates, evaluation, None if is_champion else champion)
    if cfg.tracking.require_commercial_teacher:
        verdicts = [*verdicts, judge_licence(teacher_licence(cfg.teacher))]
    return Decision(is_champion, [reason for _, reason in verdicts], own)


def _version_of(client: MlflowClient, model: str, out: str) -> str | None:
    """The newest version of a model that the run at `out` has registered."""
    run_id = run_id_of(out)
    if run_id is None:
        return None
    versions = client.search_model_versions(f"run_id='{run_id}'")
    return max((str(found.version) for found in versions if found.name == model), key=int, default=None)


def _outcome(verdicts: Sequence[Verdict]) -> str:
    """The text of the tag `promotion`: the reasons, those that refuse first."""
    refusing, others = ([reason for may, reason in verdicts if may is which] for which in (False, True))
    return "; ".join([*refusing, *others]) if refusing else f"accepted: {'; '.join(others)}"


def _measured(evaluation: Evaluation) -> dict[str, str]:
    tags = {}
    for dataset in evaluation.datasets:
        tags[f"test_set.{dataset}"] = evaluation.test_set(dataset)
        for metric in evaluation.metrics:
            mean = evaluation.mean(CANDIDATE, dataset, metric)
            if mean is not None and math.isfinite(mean):
                tags[f"metric.{dataset}.{metric}"] = repr(mean)
    return tags


def _lineage(cfg: Config) -> dict[str, str]:
    """Tags with the models and the numbers of pairs that the student was adapted with; empty without a store."""
    store = PairStore(store_url(cfg.out))
    manifest = read_manifest(store)
    if manifest is None:
        return {}
    import pyarrow.compute as pc

    names, ok = ["teacher", "student", "scorer"], pc.field("status") == "ok"
    rows = rows_dataset(store.path, store.filesystem).head(1, columns=names, filter=ok).to_pylist()
    tags = {name: str(rows[0][name]) for name in names} if rows else {}
    counts = ("inputs", "accepted", "rejected", "failed", "threshold", "settings_fingerprint")
    return tags | {f"pairs.{name}": str(manifest.document[name]) for name in counts if name in manifest.document}


def _licence(cfg: Config) -> dict[str, str]:
    """Tags with the licence class of the teacher and its source."""
    licence = teacher_licence(cfg.teacher)
    return {"teacher.licence": licence.kind, "teacher.licence_source": licence.source}


def _same_version(client: MlflowClient, model: str, run_id: str, digest: str) -> str | None:
    for version in client.search_model_versions(f"run_id='{run_id}'"):
        if version.name == model and version.tags.get("sha256") == digest:
            return str(version.version)
    return None


def _create_model(client: MlflowClient, model: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _champion(client: MlflowClient, model: str) -> ModelVersion | None:
    # A missing alias is an error with one of two codes, depending on the store; the list of aliases is neither.
    number = client.get_registered_model(model).aliases.get(CHAMPION)
    return None if number is None else client.get_model_version(model, str(number))


@contextmanager
def _local_file(path: str) -> Iterator[Path]:
    """Yield `path` itself if it is local, else a temporary copy."""
    if not is_remote(path):
        local = local_path(path)
        if not local.exists():
            raise TrackingError(f"{path}: no such file to register")
        yield local
        return
    filesystem, inner = open_filesystem(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / inner.rsplit("/", 1)[-1]
        with filesystem.open_input_stream(inner) as source, open(copy, "wb") as target:
            shutil.copyfileobj(source, target)
        yield copy

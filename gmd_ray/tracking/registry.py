"""Registering an adapted student as a version of a model, under the alias `challenger`."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import gmd_ray
from gmd_ray.config import Config
from gmd_ray.config.places import below, name_of
from gmd_ray.config.secrets import redact
from gmd_ray.hashing import path_digest
from gmd_ray.pairstore.manifest import read_manifest
from gmd_ray.pairstore.schema import rows_dataset
from gmd_ray.pairstore.store import PairStore, store_url
from gmd_ray.progress import NullRecorder
from gmd_ray.storage import local_copy, read_bytes, remove_file, write_bytes
from gmd_ray.teachers import teacher_licence
from gmd_ray.tracking.client import TrackingError, connect, tracking_errors
from gmd_ray.tracking.journal import make_model
from gmd_ray.tracking.model_folder import model_card, write_model_folder
from gmd_ray.tracking.promotion import CANDIDATE
from gmd_ray.tracking.recorder import MlflowRecorder

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from gmd_ray.evaluation import Evaluation

log = logging.getLogger("gmd_ray.tracking")

CHALLENGER = "challenger"
UNREGISTERED = "unregistered.json"
"""File in a run directory whose student is still to be registered, since MLflow was away or refused it."""
MODEL_NOTE = (
    "Image restorers adapted by gmd-ray. `champion` is the one to use, `previous` the one before it, `challenger` the "
    "newest. `gmd-ray history` says who moved `champion` and why."
)
"""Description of a registered model."""


def register(
    cfg: Config, recorder: MlflowRecorder | NullRecorder, student_path: str, evaluation: Evaluation
) -> str | None:
    """Make the file (or directory) at `student_path` a version of `cfg.tracking.model`, under the alias `challenger`.

    The version is a folder of the recorder's run, `student/<first 12 digits of the sha256>`, so that a run directory
    resumed with other settings cannot change the files of an earlier version. `mlflow.pyfunc.load_model` loads it, and
    the plain checkpoint lies in it under its own name; `model_folder` says what else does. The same file from the same
    run gives the same version again, with new figures. Tags: `sha256`, `run_id`, `file`, `out`, fingerprints of the
    models that made it (`teacher`, `student`, `scorer`), the licence class of the teacher and its source
    (`teacher.licence`, `teacher.licence_source`), counts of the pair store (`pairs.*`), the gates that judge it
    (`gates`), and for each test set its digest (`test_set.*`) and the student's means (`metric.<dataset>.<metric>`).

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
        tags |= {"out": redact(cfg.out), "gates": _gates(cfg)}
        tags |= _lineage(cfg) | _licence(cfg) | _measured(evaluation)
        folder = f"student/{digest[:12]}"
        version = _same_version(client, model, run_id, digest)
        _send_folder(client, run_id, folder, path, cfg, evaluation, tags, whole=version is None)
        card = model_card(cfg, evaluation, tags)
        if version is None:
            make_model(client, model, MODEL_NOTE)
            source = f"{client.get_run(run_id).info.artifact_uri}/{folder}"
            made = client.create_model_version(
                model, source, run_id=run_id, tags=tags, description=card, await_creation_for=0
            )
            version = str(made.version)
            log.info("registered %s version %s", model, version)
        else:
            for key, value in tags.items():
                client.set_model_version_tag(model, version, key, value)
            client.update_model_version(model, version, description=card)
            log.info("%s version %s holds this file already", model, version)
        client.set_registered_model_alias(model, CHALLENGER, version)
    recorder.tags({"registered_version": version})
    return version


def keep_registration(cfg: Config, student_path: str) -> None:
    """Note below `out` that this student is still to be registered and judged; `champions.register_kept` does it."""
    write_bytes(below(cfg.out, UNREGISTERED), json.dumps({"student": redact(student_path)}).encode())


def kept_registration(cfg: Config) -> str | None:
    """The path of the student that is still to be registered; None if there is none."""
    kept = read_bytes(below(cfg.out, UNREGISTERED))
    if kept is None:
        return None
    # The run directory may have another name by now, and a student lies in it.
    return below(cfg.out, f"finetune/{CANDIDATE}/{name_of(json.loads(kept)['student'])}")


def forget_registration(cfg: Config) -> None:
    """Remove the note of `keep_registration`, if there is one."""
    remove_file(below(cfg.out, UNREGISTERED))


def _send_folder(
    client: MlflowClient,
    run_id: str,
    folder: str,
    path: Path,
    cfg: Config,
    evaluation: Evaluation,
    tags: Mapping[str, str],
    *,
    whole: bool,
) -> None:
    """Send the folder of a version; the checkpoint itself only with `whole`."""
    with tempfile.TemporaryDirectory() as place:
        model = Path(place, "model")
        write_model_folder(model, cfg, path.name, evaluation, tags)
        if whole:
            client.log_artifact(run_id, str(path), folder)
        client.log_artifacts(run_id, str(model), folder)


def _gates(cfg: Config) -> str:
    """The gates as JSON, by which the version can be judged later."""
    tracking = cfg.tracking
    gates = [asdict(gate) for gate in tracking.gates]
    return json.dumps({"gates": gates, "require_commercial_teacher": tracking.require_commercial_teacher})


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


@contextmanager
def _local_file(path: str) -> Iterator[Path]:
    """Yield `path` itself if it is local, else a temporary copy."""
    try:
        with local_copy(path) as copy:
            Path(copy).stat()
            yield Path(copy)
    except FileNotFoundError as error:
        raise TrackingError(f"{path}: no such file to register") from error

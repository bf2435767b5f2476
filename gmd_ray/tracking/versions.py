"""Registered versions: finding one by its reference, and reading what travels with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from gmd_ray.config import Config
from gmd_ray.config.places import sqlite_path
from gmd_ray.config.secrets import redact
from gmd_ray.errors import ConfigError, DataError
from gmd_ray.hashing import path_digest
from gmd_ray.text import one_line
from gmd_ray.tracking.client import TrackingError, connect, name_filter, store_errors, tracking_errors, tracking_uri
from gmd_ray.tracking.journal import CHAMPION
from gmd_ray.tracking.model_folder import EXTRAS, FACTS_FILE
from gmd_ray.tracking.promotion import CANDIDATE

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from gmd_ray.evaluation import Difference, Evaluation

SCHEME = "models:/"
_REFERENCE = re.compile(r"models:/(?P<model>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))?")


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model at an MLflow server or database."""

    client: MlflowClient
    uri: str
    """Address of the server or database."""
    facts: ModelVersion

    @property
    def model(self) -> str:
        """Name of the registered model."""
        return str(self.facts.name)

    @property
    def number(self) -> str:
        """Number of the version."""
        return str(self.facts.version)

    @property
    def reference(self) -> str:
        """The version as `models:/NAME/NUMBER`."""
        return f"{SCHEME}{self.model}/{self.number}"

    @property
    def tags(self) -> dict[str, str]:
        """The tags that registering it has set."""
        return dict(self.facts.tags)

    def evaluation(self) -> Evaluation | None:
        """The values by image that were registered with it; None for a version of an earlier gmd_ray."""
        from gmd_ray.evaluation import load_evaluation

        with tempfile.TemporaryDirectory() as folder:
            if self.find(f"{EXTRAS}/evaluation", folder) is None:
                return None
            try:
                return load_evaluation(f"{folder}/{EXTRAS}")
            except (DataError, pa.ArrowException, KeyError, ValueError):  # gone or damaged
                return None

    def download(self, path: str, folder: str) -> Path:
        """Copy a file or folder of the version into a local folder.

        Args:
            path: relative to the version's model folder.
            folder: an existing folder; `path` is made below it.

        Raises:
            TrackingError: the version has no such file.
        """
        found = self.find(path, folder)
        if found is None:
            raise TrackingError(f"{self.reference} at {redact(self.uri)}: has no {path}")
        return found

    def find(self, path: str, folder: str) -> Path | None:
        """Do what `download` does; None where the version has no such file.

        Raises:
            TrackingError: the store of the files does not answer, or cannot hand out a file that it lists.
        """
        from mlflow.artifacts import download_artifacts

        root = str(self.client.get_model_version_download_uri(self.model, self.number)).rstrip("/")
        source = f"{root}/{path}"
        try:
            done = download_artifacts(artifact_uri=source, dst_path=folder, tracking_uri=self.uri)
        except store_errors() as error:
            above, _, name = source.rpartition("/")
            if name in self._names(above, path):
                raise self._unread(path, error) from error
            if not self._names(root, path):
                raise TrackingError(
                    f"{self.reference} at {redact(self.uri)}: its files at {redact(root)} are gone: mount what is "
                    f"missing, or move the run directory back to where it was"
                ) from error
            return None
        found, wanted = Path(done), Path(folder, path)
        if found != wanted and found.exists():
            wanted.parent.mkdir(parents=True, exist_ok=True)
            found.rename(wanted)
        return wanted if wanted.exists() else None

    def _names(self, folder: str, path: str) -> set[str]:
        """Ask the store what a folder holds, since a failed download of `path` does not tell why it failed."""
        from mlflow.artifacts import list_artifacts
        from mlflow.exceptions import MlflowException

        try:
            found = list_artifacts(artifact_uri=folder, tracking_uri=self.uri)
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except store_errors() as error:
            if isinstance(error, MlflowException) and error.get_http_status_code() == 404:
                return set()
            raise self._unread(path, error) from error
        return {info.path.rpartition("/")[2] for info in found}

    def _unread(self, path: str, error: Exception) -> TrackingError:
        reason = redact(one_line(error, 200))
        return TrackingError(
            f"{self.reference} at {redact(self.uri)}: {path} cannot be read ({reason}); see that MLflow's artifact "
            f"store answers, and give the same command again"
        )


def find_version(cfg: Config, reference: str) -> RegisteredVersion:
    """Find a version.

    Args:
        cfg: `tracking.uri`, or MLFLOW_TRACKING_URI, or the database below `out` is asked.
        reference: `models:/NAME@ALIAS`, `models:/NAME/NUMBER` or `models:/NAME` (its champion); of the model
            `tracking.model` also the number, or the alias, alone.

    Raises:
        ConfigError: the reference cannot be read, or there is no such model, version or alias.
        TrackingError: MLflow refuses, or cannot be reached.
    """
    model, alias, number = read_reference(reference, cfg.tracking.model)
    client, uri = open_registry(cfg)
    with tracking_errors(uri, f"looking for {reference}"):
        if not client.search_registered_models(name_filter(model)):
            raise ConfigError(f"{reference}: no registered model {model!r} at {redact(uri)}; see tracking.uri")
        if alias is not None:
            number = aliases_of(client, model).get(alias)
            if number is None:
                raise ConfigError(f"{reference}: no version of {model} has the alias {alias!r} at {redact(uri)}")
        found = {str(version.version): version for version in client.search_model_versions(name_filter(model))}
        if number not in found:
            known = ", ".join(sorted(found, key=int))
            raise ConfigError(
                f"{reference}: {model} has no version {number} at {redact(uri)}; it has {known or 'none'}"
            )
        return RegisteredVersion(client, uri, found[number])


def read_reference(reference: str, model: str) -> tuple[str, str | None, str | None]:
    """Split a reference into model, alias and number, of which one of the last two is None.

    Raises:
        ConfigError: it cannot be read.
    """
    if reference.isdigit():
        return model, None, reference
    found = _REFERENCE.fullmatch(reference if reference.startswith(SCHEME) else f"{SCHEME}{model}@{reference}")
    if found is None:
        raise ConfigError(f"{reference}: give models:/NAME@ALIAS, models:/NAME/NUMBER, or a number or alias alone")
    alias = found["alias"] if found["version"] or found["alias"] else CHAMPION
    return found["model"], alias, found["version"]


def open_registry(cfg: Config) -> tuple[MlflowClient, str]:
    """Connect to the registry of the settings; returns the client and the address.

    Raises:
        ConfigError: it is a local database that does not exist, which is not made for a question.
    """
    uri = tracking_uri(cfg)
    database = sqlite_path(uri)
    if database is not None and not Path(database).is_file():
        raise ConfigError(f"{redact(uri)}: no such database; give tracking.uri=, MLFLOW_TRACKING_URI or out= of a run")
    return connect(uri), uri


def aliases_of(client: MlflowClient, model: str) -> dict[str, str]:
    """The aliases of a registered model with the numbers of their versions."""
    return {alias: str(number) for alias, number in client.get_registered_model(model).aliases.items()}


def fetch_student(cfg: Config, reference: str) -> tuple[str, dict[str, Any]]:
    """Copy the checkpoint of a version to this machine's cache, where a second call finds it.

    The cache is `gmd_ray/students` in XDG_CACHE_HOME, by default `~/.cache`; the digest of the version names the
    folder, and the file is held against it.

    Returns:
        the path of the checkpoint, and the settings of `student` that it was registered with.

    Raises:
        ConfigError, TrackingError: as `find_version`; or the file is not the one that was registered.
    """
    version = find_version(cfg, reference)
    digest, name = version.tags.get("sha256", ""), version.tags.get("file", "")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gmd_ray" / "students"
    place = cache / (digest or f"{version.model}-{version.number}")
    with tracking_errors(version.uri, f"fetching {version.reference}"):
        if not (place / name).exists() or path_digest(place / name) != digest:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                found = version.download(name, folder)
                if path_digest(found) != digest:
                    raise TrackingError(f"{version.reference}: its file {name} is not the one that was registered")
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(parents=True, exist_ok=True)
                found.rename(place / name)
        with tempfile.TemporaryDirectory() as folder:
            facts = version.find(FACTS_FILE, folder)
            settings = {} if facts is None else dict(json.loads(facts.read_text())["settings"])
    return str(place / name), settings


@dataclass(frozen=True)
class ComparedFigure:
    """One metric on one test set, of two versions."""

    dataset: str
    metric: str
    means: tuple[float | None, float | None]
    difference: Difference | None
    """The second version minus the first, paired by image, and corrected for the number of figures; None where they
    cannot be paired."""
    why: str
    """The reason for which they cannot be paired; empty where they can."""
    lower_is_better: bool
    """Direction of the metric."""

    def to_json(self) -> dict[str, Any]:
        """The figure as a JSON object; `gain` is positive where the second version is the better one."""
        pairs = self.difference
        facts = {} if pairs is None else {"gain": pairs.gain, "n": pairs.n, "verdict": pairs.phrase, "p": pairs.p}
        facts |= {} if pairs is None else {"adjusted_p": pairs.adjusted_p}
        if pairs is not None and pairs.low is not None and pairs.high is not None:
            ends = (-pairs.high, -pairs.low) if pairs.lower_is_better else (pairs.low, pairs.high)
            facts["interval"] = list(ends)
        what = {"dataset": self.dataset, "metric": self.metric, "lower_is_better": self.lower_is_better}
        return {**what, "means": list(self.means), **facts, "why": self.why}


def compare_versions(first: RegisteredVersion, second: RegisteredVersion) -> list[ComparedFigure]:
    """Compare two versions by the values that travel with them; nothing is restored or measured.

    The words of the differences hold after Holm's correction for all of them.

    Raises:
        DataError: one of them has no values by image.
    """
    from gmd_ray.evaluation.differences import corrected

    evaluations = []
    for version in (first, second):
        evaluation = version.evaluation()
        if evaluation is None:
            raise DataError(f"{version.reference}: no values by image travel with it; an earlier gmd_ray made it")
        evaluations.append(evaluation)
    a, b = evaluations
    found = []
    for dataset in dict.fromkeys([*a.datasets, *b.datasets]):
        for metric in dict.fromkeys([*a.metrics, *b.metrics]):
            means = a.mean(CANDIDATE, dataset, metric), b.mean(CANDIDATE, dataset, metric)
            if means == (None, None):
                continue
            why = _why_not(a, b, dataset, means)
            theirs, ours = (evaluation.values(CANDIDATE, dataset, metric) for evaluation in (a, b))
            difference = None if why else b.compare(dataset, metric, ours, theirs)
            lower = not {**a.directions, **b.directions}.get(metric, True)
            found.append(ComparedFigure(dataset, metric, means, difference, why, lower))
    together = corrected([figure.difference for figure in found])
    return [replace(figure, difference=pairs) for figure, pairs in zip(found, together, strict=True)]


def _why_not(a: Evaluation, b: Evaluation, dataset: str, means: Sequence[float | None]) -> str:
    if None in means:
        return "one of them has no value"
    return "" if a.test_set(dataset) == b.test_set(dataset) else "they were measured on different test sets"

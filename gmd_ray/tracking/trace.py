"""From a registered version back to where it comes from: run, code, settings, store, pairs, photos and teacher."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gmd_ray.config.secrets import redact
from gmd_ray.text import printable
from gmd_ray.tracking.client import store_errors, tracking_errors
from gmd_ray.tracking.journal import Journal
from gmd_ray.tracking.model_folder import PAIRS_FILE
from gmd_ray.tracking.versions import RegisteredVersion, aliases_of

_SHOWN = ("target.path", "source.hq", "source.degradation", "teacher.method", "teacher.steps", "teacher.strength")
"""Settings that the text names; the JSON document has all."""


@dataclass(frozen=True)
class Trace:
    """Everything that is known about the origin of a version, as one JSON object."""

    document: Mapping[str, Any]
    """Keys: `version`, `run`, `code`, `settings`, `store`, `teacher`, `student`, `scorer`, `test_sets`, `promotions`,
    and `pairs`, a list of rows with the id, URI and digest of each photo."""

    def text(self, pairs: int) -> str:
        """The trace in lines, with the first `pairs` accepted pairs."""
        found = self.document
        lines = []
        for part in ("version", "run", "code", "store", "teacher", "student", "scorer", "test_sets"):
            facts = ", ".join(f"{key} {_word(value)}" for key, value in found[part].items() if value not in (None, ""))
            lines.append(f"{part:<10} {facts or 'not recorded'}")
        settings = found["settings"]
        shown = [f"{key}={_word(value)}" for key in _SHOWN if (value := _dig(settings, key)) is not None]
        lines.append(f"{'settings':<10} {', '.join(shown) or 'not recorded'}{'; all with --json' if settings else ''}")
        for entry in found["promotions"]:
            about = f"version {entry['version'] or '-'} {entry['action']} by {entry['who']}: {entry['reason']}"
            lines.append(f"{'promotion':<10} {entry['when']} {printable(about)}")
        accepted = [row for row in found["pairs"] if row["accepted"]]
        counts = f"{len(found['pairs'])} rows, {len(accepted)} accepted" if found["pairs"] else "not recorded"
        lines.append(f"{'pairs':<10} {counts}")
        for row in accepted[:pairs]:
            score = "" if row["score"] is None else f"score {row['score']:.4g}, "
            lines.append(
                f"  {printable(row['id'])}: {score}photo {printable(row['uri'])}, sha256 {row['digest'] or 'not kept'}"
            )
        if len(accepted) > pairs:
            lines.append(f"  and {len(accepted) - pairs} more: --pairs N, or --json for all rows")
        return "\n".join(lines)


def trace(version: RegisteredVersion) -> Trace:
    """Collect the origin of a version from its tags, its run and its files. The run directory is not needed.

    Raises:
        TrackingError: MLflow refuses, or cannot be reached.
    """
    tags, client, run_id = version.tags, version.client, version.facts.run_id
    with tracking_errors(version.uri, f"tracing {version.reference}"):
        aliases = sorted(name for name, number in aliases_of(client, version.model).items() if number == version.number)
        run = client.get_run(run_id) if run_id else None
        experiment = client.get_experiment(run.info.experiment_id).name if run else None
        promotions = [
            entry.to_json()
            for entry in Journal(client, version.model).entries()
            if version.number in (entry.version, entry.before)
        ]
    about = dict(run.data.tags) if run else {}
    settings = _settings(version) if run else {}
    return Trace(
        {
            "version": {
                "reference": version.reference,
                "aliases": aliases,
                "file": tags.get("file"),
                "sha256": tags.get("sha256"),
                "registered": _when(version.facts.creation_timestamp),
            },
            "run": {
                "id": run_id or None,
                "name": run.info.run_name if run else None,
                "experiment": experiment,
                "user": about.get("mlflow.user"),
                "started": _when(run.info.start_time) if run else None,
                "at": redact(version.uri),
            },
            "code": {
                "gmd_ray": tags.get("gmd_ray.version"),
                "git commit": about.get("mlflow.source.git.commit"),
                "changed since": about.get("gmd_ray.git_dirty"),
            },
            "settings": settings,
            "store": {"out": tags.get("out")}
            | {key.removeprefix("pairs."): value for key, value in sorted(tags.items()) if key.startswith("pairs.")},
            "teacher": {
                "path": _dig(settings, "teacher.path"),
                "fingerprint": tags.get("teacher"),
                "licence": tags.get("teacher.licence"),
                "licence source": tags.get("teacher.licence_source"),
            },
            "student": {
                "path": _dig(settings, "student.path"),
                "fingerprint": tags.get("student"),
                "sha256": about.get("student.sha256"),
            },
            "scorer": {"fingerprint": tags.get("scorer"), "threshold": tags.get("pairs.threshold")},
            "test_sets": {
                key.removeprefix("test_set."): value for key, value in tags.items() if key.startswith("test_set.")
            },
            "promotions": promotions,
            "pairs": _pairs(version),
        }
    )


def _pairs(version: RegisteredVersion) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = version.find(PAIRS_FILE, folder)
        return [] if path is None else pq.read_table(path).to_pylist()


def _settings(version: RegisteredVersion) -> dict[str, Any]:
    unreadable: tuple[type[Exception], ...] = (*store_errors(), ValueError)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = version.client.download_artifacts(version.facts.run_id, "config.json", folder)
            return dict(json.loads(Path(path).read_text()))
        except unreadable:
            return {}


def _dig(settings: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key in nested settings; None without one."""
    value: Any = settings
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _word(value: Any) -> str:
    return printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _when(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(milliseconds / 1000))

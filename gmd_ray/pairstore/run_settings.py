"""`settings.json`: the settings, places and models that a store was made with; changed ones are refused.

What counts are settings that alter pixels or scores, by value, and models by their fingerprints.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gmd_ray.config import Config
from gmd_ray.config.secrets import digested, digested_values
from gmd_ray.errors import DataError, GmdError, ResumeMismatchError
from gmd_ray.hashing import short_digest
from gmd_ray.pairstore.store import PairStore
from gmd_ray.weights import stored_model

SETTINGS_FILE = "settings.json"

Facts = dict[str, dict[str, Any]]
"""`student`, `teacher`, `scorer` -> `fingerprint`, and the scorer's `higher_is_better`."""

MODELS = ("student", "teacher", "scorer")
PLACES = ("target.path", "student.path", "teacher.path", "scorer.path", "scorer.weights", "scorer.fidelity_weights")
"""Settings that are paths. What counts is the content, so a changed path is looked into, not refused."""
_HARMLESS = (
    "pool",
    "device",
    "threshold",
    "fidelity_bound",
    "preset",
    *("cache", "cache_location", "host_cache_gb", "modulation", "offload", "compile", "attention_backend"),
    "prompt_embeddings",
    *("licence", "allow_distilled"),
    "gpus_per_replica",
    "sharding",
    "gradient_checkpointing",
)
"""Fields of a model's section that change neither pixels nor scores. A preset counts by the fields that it fills, and
prompt embeddings by their prompts and their model, which are in the teacher's fingerprint."""

_GONE = {"teacher.quantization": "none"}
"""Settings that only earlier versions had, with the value that stands for their absence."""


@dataclass(frozen=True)
class RunSettings:
    """The settings, places and models that a store's rows were made with (`settings.json`).

    Files of earlier versions lack some keys; a property is None, or empty, where its key is missing.
    """

    document: Mapping[str, Any] = field(default_factory=dict)
    """The JSON object of the file: `settings`, `places`, `models` and `inputs`."""

    @classmethod
    def from_json(cls, document: Any, where: str) -> RunSettings:
        """Take a parsed JSON document.

        Args:
            where: the file's URL, for the error.

        Raises:
            DataError: the document is no JSON object.
        """
        if not isinstance(document, dict):
            raise DataError(f"{where}: not settings of this program (no JSON object); run generate again")
        return cls(document)

    def to_json(self) -> dict[str, Any]:
        """The document as it is stored, keys that this version does not know included."""
        return dict(self.document)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Dotted key -> value, as `relevant` gives them."""
        return self.document.get("settings", {})

    @property
    def models(self) -> Facts:
        """Facts of the models behind the rows."""
        return self.document.get("models", {})

    @property
    def higher_is_better(self) -> bool:
        """The direction of the score; True where nothing was scored or nobody recorded it."""
        return higher_is_better(self.models)

    @property
    def fidelity(self) -> str:
        """The metric in column `fidelity`; `none` where the column is empty."""
        return recorded_fidelity(self.settings)

    @property
    def _inputs(self) -> Mapping[str, Any]:
        return self.document.get("inputs", {})

    @property
    def input_count(self) -> int | None:
        """The number of input images when the last run began."""
        return self._inputs.get("count")

    @property
    def input_limit(self) -> int | None:
        """`target.limit` of the last run; None for all images, and where no run recorded it."""
        return self._inputs.get("limit")

    @property
    def removed_inputs(self) -> tuple[str, ...]:
        """Ids of rows whose image was no longer among the inputs when the last run began (key `stranger_ids`)."""
        return tuple(self._inputs.get("stranger_ids", ()))

    def path(self, key: str) -> str | None:
        """The path that a setting of `PLACES` had, without its secrets."""
        return self.document.get("places", {}).get(key, {}).get("path")


def read_settings(store: PairStore) -> RunSettings:
    """Read the settings that a store was made with; empty ones where there is no file.

    Raises:
        DataError: the file holds no settings.
        StorageError: the file cannot be read.
    """
    document = store.read(SETTINGS_FILE)
    return RunSettings() if document is None else RunSettings.from_json(document, f"{store.url}/{SETTINGS_FILE}")


def relevant(cfg: Config) -> dict[str, Any]:
    """Collect every setting that alters a pixel or a score, but for `PLACES`: dotted key -> value."""
    values: dict[str, Any] = {
        "target.gray": cfg.target.gray,
    }
    for section in MODELS:
        for key, value in asdict(getattr(cfg, section)).items():
            if key not in _HARMLESS and f"{section}.{key}" not in PLACES:
                values.update(_flat(f"{section}.{key}", value))
    if cfg.scorer.path is not None:
        del values["scorer.metric"]  # unused then
    # As JSON gives them back, so that they compare equal to the saved ones; secrets are replaced by their digests.
    return digested_values(json.loads(json.dumps(values)))


def places(cfg: Config) -> dict[str, dict[str, Any]]:
    """Collect `PLACES`: dotted key -> path without its secrets, and for a local path its size and time of change."""
    sections: dict[str, Any] = asdict(cfg)
    found = {}
    for key in PLACES:
        section, field = key.split(".")
        path = sections[section][field]
        shown = None if path is None else digested(path)
        # Photos may be added to the target folder, so only its path is compared.
        found[key] = {"path": shown} if key == "target.path" or path is None else {"path": shown, **_stat(path)}
    if cfg.scorer.path is not None:
        found["scorer.weights"] = {"path": None}  # unused then
    return found


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Digest `relevant` settings to 16 hexadecimal digits."""
    return short_digest(json.dumps(settings, sort_keys=True))


def refuse_changes(saved: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Compare settings with those a store was made with.

    A setting that the store's version did not have counts with its default, and one that only the store's version had
    with the value of `_GONE`. An overlap of tiles counts only where there are tiles.

    Raises:
        ResumeMismatchError: naming each differing key with its old and new value.
    """
    defaults = relevant(Config()) | _GONE
    changes = []
    untiled = {f"{room}.tile_overlap" for room in ("student", "teacher") if not now.get(f"{room}.tile")}
    for key in sorted({*saved, *now} - untiled):
        old, new = saved.get(key, defaults.get(key)), now.get(key, defaults.get(key))
        if old != new:
            changes.append(f"{key}: {old!r} -> {new!r}")
    if changes:
        raise ResumeMismatchError(
            f"{where} was made with other settings: {'; '.join(changes)}; give another out=, or the old values"
        )


def moved(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the keys of places whose path, size or time of change differs from the saved one."""
    return [key for key in now if saved.get(key) != now[key]]


def higher_is_better(facts: Facts) -> bool:
    """Direction of the score; True where nothing was scored."""
    return bool(facts.get("scorer", {}).get("higher_is_better", True))


def recorded_fidelity(settings: Mapping[str, Any]) -> str:
    """The metric in a store's column `fidelity`, by the settings that the store was made with."""
    return str(settings.get("scorer.fidelity", "none"))


def _flat(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for name, inner in value.items() for k, v in _flat(f"{key}.{name}", inner).items()}
    return {key: value}


def _stat(place: str) -> dict[str, Any]:
    """Size in bytes and latest change of a file, or of all files below a directory; for a URL its `identity`.

    Empty for a hub id, and for a URL that is away.
    """
    if "://" in place:
        with contextlib.suppress(GmdError):
            return {"identity": stored_model(place).identity}
        return {}
    path = Path(place)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
    stats = [file.stat() for file in files]
    if not stats:
        return {}
    return {"bytes": sum(stat.st_size for stat in stats), "changed_ns": max(stat.st_mtime_ns for stat in stats)}

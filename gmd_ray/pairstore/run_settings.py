"""The settings that a store was made with: changed ones that alter pixels or scores are refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gmd_ray.config import Config
from gmd_ray.config.secrets import digested, digested_values
from gmd_ray.errors import ResumeMismatchError

SETTINGS_FILE = "settings.json"

Facts = dict[str, dict[str, Any]]
"""student, teacher, scorer -> fingerprint, and the scorer's higher_is_better."""

MODELS = ("student", "teacher", "scorer")
PLACES = ("target.path", "student.path", "teacher.path", "scorer.path", "scorer.weights", "scorer.fidelity_weights")
"""Where things lie. What counts is what lies there, so a changed place is looked into, not refused."""
_HARMLESS = (
    "pool",
    "device",
    "threshold",
    "fidelity_bound",
    "preset",
    *("cache", "cache_location", "host_cache_gb", "modulation", "offload", "compile", "attention_backend"),
    "prompt_embeddings",
    "gpus_per_replica",
    "sharding",
    "gradient_checkpointing",
)
"""Of a model's section: what changes neither pixels nor scores; a preset counts by the fields it fills, prompt
embeddings by the prompts and the model they are of, in the teacher's fingerprint."""


def relevant(cfg: Config) -> dict[str, Any]:
    """Dotted key -> value of every setting that alters a pixel or a score, places apart."""
    values: dict[str, Any] = {
        "target.gray": cfg.target.gray,
    }
    for section in MODELS:
        for key, value in asdict(getattr(cfg, section)).items():
            if key not in _HARMLESS and f"{section}.{key}" not in PLACES:
                values.update(_flat(f"{section}.{key}", value))
    if cfg.scorer.path is not None:
        del values["scorer.metric"]  # unused then
    # As JSON gives them back, so that they compare equal to what was saved; secrets as digests of them.
    return digested_values(json.loads(json.dumps(values)))


def places(cfg: Config) -> dict[str, dict[str, Any]]:
    """Dotted key -> path without its secrets, and for a local one its size in bytes and time of change."""
    sections: dict[str, Any] = asdict(cfg)
    found = {}
    for key in PLACES:
        section, field = key.split(".")
        path = sections[section][field]
        shown = None if path is None else digested(path)
        # Photos may be added to the target folder: only its path is looked at.
        found[key] = {"path": shown} if key == "target.path" or path is None else {"path": shown, **_stat(Path(path))}
    if cfg.scorer.path is not None:
        found["scorer.weights"] = {"path": None}  # unused then
    return found


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Short digest of `relevant` settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def refuse_changes(saved: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Compare settings with those a store was made with.

    A setting that the store does not know yet is taken to have had its default; an overlap of tiles counts where there
    are tiles.

    Raises:
        ResumeMismatchError: naming each differing key with its old and new value.
    """
    defaults = relevant(Config())
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
    """The places that are not what they were."""
    return [key for key in now if saved.get(key) != now[key]]


def higher_is_better(facts: Facts) -> bool:
    """Direction of the score; of no consequence where nothing was scored."""
    return bool(facts.get("scorer", {}).get("higher_is_better", True))


def recorded_fidelity(settings: Mapping[str, Any]) -> str:
    """What the `fidelity` column of a store holds, from the settings it was made with."""
    return str(settings.get("scorer.fidelity", "none"))


def _flat(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for name, inner in value.items() for k, v in _flat(f"{key}.{name}", inner).items()}
    return {key: value}


def _stat(path: Path) -> dict[str, Any]:
    """Size and latest change of a file, or of all files below a directory; nothing for a hub id or URL."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
    stats = [file.stat() for file in files]
    if not stats:
        return {}
    return {"bytes": sum(stat.st_size for stat in stats), "changed_ns": max(stat.st_mtime_ns for stat in stats)}

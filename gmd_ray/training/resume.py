"""Resuming a fine-tune, which needs the settings, pairs and student weights that it was begun with."""

from __future__ import annotations

from typing import Any

from gmd_ray.config import Config
from gmd_ray.config.places import above, below
from gmd_ray.errors import ResumeMismatchError
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.storage import is_file, remove_file
from gmd_ray.training.checkpoints import has_checkpoints
from gmd_ray.training.data import sources
from gmd_ray.training.run_files import CURVE, DONE, SETTINGS, read_json, write_json
from gmd_ray.training.spec import TrainingSpec, finetuned_path, make_spec

_OF_THE_STORE = ("accepted pairs", "ground truth")
"""Keys of `TrainingSpec.settings` that a run of `generate` may still change."""


def refuse_begun(
    cfg: Config,
    name: str,
    seed: int | None = None,
    *,
    generated: bool = True,
    inputs: RunInputs | None = None,
) -> None:
    """Refuse settings that differ from those of a begun or finished fine-tune; write nothing, need no Ray.

    Args:
        cfg: the settings.
        name: see `finetune`.
        seed: see `finetune`.
        generated: whether the pair store is complete. If False, `generate` runs first, and the accepted pairs are not
            compared.
        inputs: see `finetune`.

    Raises:
        ResumeMismatchError: settings differ; the message names them.
        ConfigError, DataError: see `make_spec`.
    """
    if is_begun(above(finetuned_path(cfg, name, seed))):
        refuse_other_settings(make_spec(cfg, name, seed, targets=generated, inputs=inputs), generated=generated)


def refuse_other_settings(spec: TrainingSpec, *, generated: bool = True) -> dict[str, Any]:
    """Compare the settings with those that the directory's checkpoints or student were made with; write nothing.

    Source files are compared by name, size and time of change, without reading them.

    Returns:
        `spec.settings()`.

    Raises:
        ResumeMismatchError: settings or source files differ; the message names them.
        DataError: the directory's settings file is missing or damaged.
    """
    now = spec.settings()
    if not is_begun(spec.directory):
        return now
    before = read_json(below(spec.directory, SETTINGS))
    left_out = () if generated else _OF_THE_STORE
    differing = [key for key in sorted({*before, *now}.difference(left_out)) if before.get(key) != now.get(key)]
    if differing:
        changes = "; ".join(f"{key}: {before.get(key)} before, {now.get(key)} now" for key in differing)
        raise ResumeMismatchError(
            f"{spec.directory} was begun with other settings ({changes}); remove it, or give another out="
        )
    sources.compare(spec)
    return now


def check_settings(spec: TrainingSpec) -> dict[str, Any]:
    """Check the settings as `refuse_other_settings` does, and keep the record of them up to date.

    For a begun fine-tune, source files whose time alone differs are read and compared by content. For a new one,
    settings and digests of the source files are written to its directory.
    """
    now = refuse_other_settings(spec)
    directory, interval_s = spec.directory, spec.cfg.log_interval_s
    path = below(directory, SETTINGS)
    if is_begun(directory):
        sources.settle(spec, sources.compare(spec), interval_s)
        return now
    changed = is_file(path) and read_json(path) != now
    write_json(path, now)
    if sources.remember(spec, interval_s) or changed:
        remove_file(below(directory, CURVE))  # it is from a run that never reached a checkpoint
    return now


def is_begun(directory: str) -> bool:
    """Return whether a fine-tune's directory holds anything that depends on its settings: a checkpoint or a student."""
    return has_checkpoints(directory) or is_file(below(directory, DONE))

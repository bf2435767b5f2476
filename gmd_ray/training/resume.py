"""Going on with a fine-tune: only with the settings, the pairs and the student that it was begun with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gmd_ray.config import Config
from gmd_ray.errors import ResumeMismatchError
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.training.checkpoints import has_checkpoints
from gmd_ray.training.data import sources
from gmd_ray.training.run_files import CURVE, DONE, SETTINGS, read_json, write_json
from gmd_ray.training.spec import TrainingSpec, finetuned_path, make_spec

_OF_THE_STORE = ("accepted pairs", "ground truth")
"""Settings that `generate` may still change."""


def refuse_begun(
    cfg: Config,
    name: str,
    seed: int | None = None,
    *,
    generated: bool = True,
    inputs: RunInputs | None = None,
) -> None:
    """Refuse settings that do not fit a fine-tune which was begun or finished; nothing is written, Ray is not needed.

    Args:
        generated: the pair store stands as the fine-tune will find it. Without, `generate` comes first, and the
            accepted pairs are not compared.
        inputs: the listings that the run shares; by default new ones.

    Raises:
        ResumeMismatchError: naming what differs.
        ConfigError, DataError: as `make_spec`.
    """
    if is_begun(Path(finetuned_path(cfg, name, seed)).parent):
        refuse_other_settings(make_spec(cfg, name, seed, targets=generated, inputs=inputs), generated=generated)


def refuse_other_settings(spec: TrainingSpec, *, generated: bool = True) -> dict[str, Any]:
    """Hold the settings against those that the directory's checkpoints or student were made with; nothing is written.

    Source files are compared by name, size and time, without reading them.

    Returns:
        The settings, as `TrainingSpec.settings`.

    Raises:
        ResumeMismatchError: naming the keys or the source files that differ.
        DataError: the directory's own settings are missing or damaged.
    """
    now = spec.settings()
    if not is_begun(Path(spec.directory)):
        return now
    before = read_json(Path(spec.directory, SETTINGS))
    left_out = () if generated else _OF_THE_STORE
    differing = [key for key in sorted({*before, *now}.difference(left_out)) if before.get(key) != now.get(key)]
    if differing:
        changes = "; ".join(f"{key}: {before.get(key)} before, {now.get(key)} now" for key in differing)
        raise ResumeMismatchError(
            f"{spec.directory} was begun with other settings ({changes}): remove it, or give another out="
        )
    sources.compare(spec)
    return now


def check_settings(spec: TrainingSpec) -> dict[str, Any]:
    """As `refuse_other_settings`; and source files in doubt are read, and where the fine-tune is about to begin,
    settings and source files are written down.
    """
    now = refuse_other_settings(spec)
    directory, interval_s = Path(spec.directory), spec.cfg.log_interval_s
    path = directory / SETTINGS
    if is_begun(directory):
        sources.settle(spec, sources.compare(spec), interval_s)
        return now
    changed = path.is_file() and read_json(path) != now
    write_json(path, now)
    if sources.remember(spec, interval_s) or changed:
        Path(spec.directory, CURVE).unlink(missing_ok=True)  # of a run that never reached a checkpoint
    return now


def is_begun(directory: Path) -> bool:
    """Whether a fine-tune has left anything there that depends on its settings: a checkpoint, or its student."""
    return has_checkpoints(directory) or (directory / DONE).is_file()

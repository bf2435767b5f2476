"""A quick check that a teacher's directory is complete, from the names and first bytes of its files."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import GmdError
from gmd_ray.teachers.directory import CONFIGS, cached_snapshot, hub_out_of_reach, local_directory, read_config
from gmd_ray.weights import node_copy, stored_model

_POINTER = b"version https://git-lfs"
_WEIGHTLESS_CODECS = {"SpaceToDepthCodec"}


def missing_parts(cfg: TeacherConfig, *, weights: bool = True) -> list[str]:
    """The parts that `teacher.path` lacks to load a teacher from it.

    A local directory, or the snapshot of a hub id in the hub's cache, has to hold the config files of its models. A hub
    id that is not in the cache counts as complete if the hub answers, which takes 3 s at most. Of a URL the small files
    are copied to this node, and the names of its weight files are looked at. A plugin
    (`teacher.method=package.module:factory`) is not checked.

    Args:
        weights: the directory also needs a schedule and undamaged weight files.

    Returns:
        a line for each problem; empty if none is found.
    """
    if not cfg.path or ":" in cfg.method:
        return []
    where = f"teacher.path={cfg.path}"
    if "://" in cfg.path:
        try:
            copy = node_copy(cfg.path, CONFIGS)
            names = {file.name for file in stored_model(cfg.path).files}
        except GmdError as error:
            return [f"teacher.path={error}"]
        return _complaints(copy, where, weights, names)
    path = local_directory(cfg.path) or (cached_snapshot(cfg.path) if cfg.path.count("/") == 1 else None)
    if local_directory(cfg.path) is None:
        if Path(cfg.path).is_absolute() or cfg.path.startswith(".") or cfg.path.count("/") != 1:
            return [f"{where}: no such directory"]
        complaints = [] if path is None else _complaints(path, where, weights)
        if path is not None and not complaints:
            return []
        why = hub_out_of_reach()
        if why is None:
            return []  # the missing files are downloaded when the teacher is loaded
        return complaints or [
            f"{where}: neither a local directory nor a hub id in reach ({why}); give the directory that it was "
            "downloaded to"
        ]
    assert path is not None
    return _complaints(path, where, weights)


def _complaints(path: Path, where: str, weights: bool, stored: Collection[str] | None = None) -> list[str]:
    """A line for each missing or damaged file of a local directory.

    Args:
        stored: names of all files of a URL, of which `path` has the small ones.
    """
    network = next((name for name in ("transformer", "unet") if (path / name / "config.json").is_file()), None)
    if network is None:
        return [
            f"{where}: no transformer/config.json in it, nor unet/config.json; a teacher directory holds transformer/ "
            "(or unet/), vae/ and scheduler/"
        ]
    lines = []
    # A plan needs the sizes alone. It uses the schedule of FLUX.1 for a model that has none of its own.
    for file in ("vae/config.json", *(("scheduler/scheduler_config.json",) if weights else ())):
        if not (path / file).is_file():
            lines.append(f"{where}: no {file} in it; a teacher directory holds {network}/, vae/ and scheduler/")
    if weights:
        folders = [network]
        if read_config(path / "vae" / "config.json").get("_class_name") not in (None, *_WEIGHTLESS_CODECS):
            folders.append("vae")
        lines += [f"{where}: {line}" for folder in folders for line in _weight_complaints(path, folder, stored)]
    return lines


def _weight_complaints(path: Path, name: str, stored: Collection[str] | None) -> list[str]:
    """A line for each problem with the weight files of one model, in the folder `name`."""
    folder = path / name
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        wanted = sorted(set(read_config(indices[0]).get("weight_map", {}).values()))
        absent = [
            file
            for file in wanted
            if (not (folder / file).is_file() if stored is None else f"{name}/{file}" not in stored)
        ]
        if absent:
            some = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
            return [
                f"{len(absent)} of the {len(wanted)} weight files of {folder.name}/ are missing ({some}); download the "
                "rest of it"
            ]
        files = [folder / name for name in wanted]
    else:
        files = sorted(folder.glob("*.safetensors"))
        held = bool(files) if stored is None else any(re.fullmatch(rf"{name}/[^/]*\.safetensors", f) for f in stored)
        if not held:
            return [f"no *.safetensors in {folder.name}/; other weight files are not loaded"]
    if stored is not None:
        return []  # they are checked as they are downloaded
    return [line for file in files if (line := _damage(file)) is not None]


def _damage(file: Path) -> str | None:
    """A line if the header of a safetensors file does not fit the file's size, else None.

    The file begins with the length of the header in 8 bytes. The header is JSON with the offsets of all tensors.
    """
    name = f"{file.parent.name}/{file.name}"
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(len(_POINTER))
        if head.startswith(_POINTER):
            return f"{name} is a Git LFS pointer, not the weights; run `git lfs pull` there"
        length = int.from_bytes(head[:8], "little")
        if size < 8 or length > size - 8:
            return f"{name} is truncated; download it again"
        stream.seek(8)
        try:
            header = json.loads(stream.read(length))
            end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return f"{name} is not a safetensors file; download it again"
    return f"{name} is truncated; download it again" if 8 + length + end > size else None

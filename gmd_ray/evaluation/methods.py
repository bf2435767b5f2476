"""The methods that an evaluation compares, a row each: students, students followed by a teacher, ready outputs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from gmd_ray.config import Config, TeacherConfig
from gmd_ray.config.layers import teacher_preset_names, with_teacher_preset
from gmd_ray.config.places import below
from gmd_ray.errors import ConfigError, DataError, GmdError, nearest
from gmd_ray.evaluation.items import Item, students_with_teacher, with_teacher_row
from gmd_ray.evaluation.results import TRUTH, UNTOUCHED
from gmd_ray.evaluation.table import BASELINE
from gmd_ray.generation.prompts import prompts_folder
from gmd_ray.images.files.encode import to_images, to_tensor
from gmd_ray.images.sets.pairs import list_by_stem, load_image, pairing_stem
from gmd_ray.storage import is_folder
from gmd_ray.students import load_student
from gmd_ray.teachers import estimate_teacher, find_prompts, load_teacher
from gmd_ray.text import some


@dataclass(frozen=True)
class Method:
    """One row of the table: a checkpoint, a teacher behind another row, or a folder of outputs."""

    name: str
    checkpoint: str = ""
    """A student's file or directory."""
    own: bool = False
    """The student is the run's, so that all settings of `student` are about it."""
    teacher: TeacherConfig | None = None
    of: str = ""
    """The row whose output the teacher projects."""
    folder: str = ""
    """Folder or URL of ready outputs."""


def plan_methods(cfg: Config, students: Mapping[str, str]) -> list[Method]:
    """List the rows: each student, with its own online row behind it, then those of `evaluation.methods`.

    Args:
        cfg: the settings.
        students: paths of checkpoints by name.

    Raises:
        ConfigError: a name that is taken, or a method that cannot be read.
    """
    online = students_with_teacher(cfg, students)
    found: list[Method] = []
    for name, path in students.items():
        found.append(Method(name, checkpoint=path, own=True))
        if name in online:
            found.append(Method(with_teacher_row(name), teacher=cfg.teacher, of=name))
    for name, text in cfg.evaluation.methods.items():
        if name in (UNTOUCHED, TRUTH, *(method.name for method in found)):
            raise ConfigError(f"evaluation.methods.{name}: the table has a row of this name already; take another")
        kind, _, rest = text.partition(":")
        if kind == "online":
            if BASELINE not in students:
                raise ConfigError(f"evaluation.methods.{name}={text}: needs the baseline, which is not evaluated")
            found.append(Method(name, teacher=_teacher(cfg, rest), of=BASELINE))
        else:
            place = rest if "://" in rest else os.path.abspath(os.path.expanduser(rest))
            if "://" not in rest and not Path(place).exists():
                raise ConfigError(f"evaluation.methods.{name}={text}: no such file or folder")
            found.append(Method(name, folder=place) if kind == "folder" else Method(name, checkpoint=place))
    return found


def _teacher(cfg: Config, text: str) -> TeacherConfig:
    """The teacher that `online:TEXT` names: a preset, a directory, or preset@directory."""
    preset, at, path = text.partition("@")
    if preset in teacher_preset_names():
        found = with_teacher_preset(cfg.teacher, preset)
        if not at and not cfg.teacher.path:
            raise ConfigError(f"evaluation.methods: online:{text}: set teacher.path, or give online:{text}@DIRECTORY")
        return replace(found, path=path) if at else found
    if "://" in text and not at:
        return replace(cfg.teacher, path=text)
    if at or not Path(text).is_dir():
        raise ConfigError(
            f"evaluation.methods: online:{text}: neither a directory nor a preset of a teacher; "
            f"{nearest(preset, teacher_preset_names())}"
        )
    return replace(cfg.teacher, path=os.path.abspath(text))


def find_outputs(methods: Iterable[Method], items: Sequence[Item]) -> None:
    """Write the URIs of ready outputs into the items, as the JSON text `outputs`, by method.

    Raises:
        DataError: a photo without an output; one line with the number and some names.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for method in methods:
        if method.folder:
            for dataset, folder in _folders(method.folder).items():
                wanted = [item for item in items if item["dataset"] == dataset]
                for item, uri in zip(wanted, _match(method, folder, wanted), strict=True):
                    found.setdefault((dataset, item["id"]), {})[method.name] = uri
    for item in items:
        item["outputs"] = json.dumps(found.get((item["dataset"], item["id"]), {}))


def _folders(folder: str) -> dict[str, str]:
    """The folder of the outputs for each test set that it has outputs for."""
    inner = {name: below(folder, name) for name in ("target", "source")}
    present = {name: path for name, path in inner.items() if is_folder(path)}
    return present or {"target": folder}


def _match(method: Method, folder: str, items: Sequence[Item]) -> list[str]:
    if not items:
        return []
    by_stem = list_by_stem(folder)
    uris: dict[str, str] = {}
    for item in items:
        # Programs name an output by its input, whose name may differ from that of the ground truth.
        names = [item["id"], *([item["lq"].rpartition("/")[2]] if item["lq"] else [])]
        found = [by_stem[stem].uri for stem in map(pairing_stem, names) if stem in by_stem]
        if found:
            uris[item["id"]] = found[0]
    missing = [item["id"] for item in items if item["id"] not in uris]
    if missing:
        raise DataError(
            f"evaluation.methods.{method.name}=folder:{folder}: {len(missing)} of {len(items)} "
            f"{items[0]['dataset']} photos have no output of the same name there ({some(missing)})"
        )
    return [uris[item["id"]] for item in items]


class Runner(Protocol):
    """A method, loaded."""

    of: str
    """The row whose output is its input beside the photo; empty for none."""
    parameters: int | None
    device: str
    """Name of the device for the table; empty where the time says nothing of the method."""

    def serves(self, item: Item) -> bool:
        """Return False for an image of a test set that the method has no outputs for."""
        ...

    def __call__(self, item: Item, lq: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        """Make the output for one image: float32 RGB (H, W, 3) in [0, 1], in levels of 8 bits.

        Args:
            item: the row of the stream.
            lq: the photo, float32 RGB (h, w, 3) in [0, 1].
            before: the output of the row `of`; None where that one failed.
        """
        ...


class StudentRunner:
    """A student."""

    of = ""

    def __init__(self, cfg: Config, method: Method) -> None:
        settings = replace(cfg.student, path=method.checkpoint, device=cfg.evaluation.device)
        if not method.own:
            settings = replace(settings, factory=None, sampling_steps=None)
        self.student = load_student(settings)
        self.parameters: int | None = sum(parameter.numel() for parameter in self.student.module.parameters())
        self.device = device_name(self.student.module)

    def serves(self, item: Item) -> bool:
        return True

    def __call__(self, item: Item, lq: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        return rounded(self.student.restore(to_tensor([lq]), [item["id"]]), "restored")


class TeacherRunner:
    """A teacher that projects the output of another row, both rounded to 8 bits as in a pair store."""

    def __init__(self, cfg: Config, method: Method, before: Runner) -> None:
        assert method.teacher is not None
        # It gets one image at a time, or as many tiles of one as the pool's batch size says.
        pool = method.teacher.pool if method.teacher.tile else replace(method.teacher.pool, batch_size=1)
        settings = replace(method.teacher, device=cfg.evaluation.device, pool=pool)
        self.of, self.device = method.of, before.device
        self.teacher = load_teacher(find_prompts(settings, prompts_folder(cfg.out)) or settings)
        own = teacher_parameters(settings)
        self.parameters = None if own is None or before.parameters is None else before.parameters + own

    def serves(self, item: Item) -> bool:
        return True

    def __call__(self, item: Item, lq: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        if before is None:
            raise ValueError("the student failed, so that there is nothing to project")
        return rounded(self.teacher.project(to_tensor([before]), [item["id"]]), "projected")


class FolderRunner:
    """Ready outputs, whose cost is unknown."""

    of, device = "", ""
    parameters: int | None = None

    def __init__(self, method: Method) -> None:
        self._name = method.name

    def serves(self, item: Item) -> bool:
        return self._name in _outputs(item)

    def __call__(self, item: Item, lq: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        return _levels(load_image(_outputs(item)[self._name], gray=False))


def _outputs(item: Item) -> dict[str, str]:
    found: dict[str, str] = json.loads(item.get("outputs") or "{}")
    return found


def load_methods(cfg: Config, methods: Sequence[Method]) -> dict[str, Runner]:
    """Load every method, by name and in order.

    Raises:
        ModelError: a checkpoint or a teacher that cannot be loaded.
        ConfigError: students of several scales.
    """
    found: dict[str, Runner] = {}
    scales: dict[int, str] = {}
    for method in methods:
        if method.teacher is not None:
            found[method.name] = TeacherRunner(cfg, method, found[method.of])
        elif method.folder:
            found[method.name] = FolderRunner(method)
        else:
            runner = found[method.name] = StudentRunner(cfg, method)
            scales.setdefault(runner.student.scale, method.name)
    if len(scales) > 1:
        enlarge = " and ".join(f"{name} by {scale}" for scale, name in scales.items())
        raise ConfigError(f"students of one evaluation enlarge by the same factor; here {enlarge}")
    return found


def teacher_parameters(cfg: TeacherConfig) -> int | None:
    """Number of parameters of a teacher's transformer; None where no cost model knows it."""
    try:
        return estimate_teacher(cfg).parameters
    except GmdError:
        return None


def device_name(module: torch.nn.Module) -> str:
    """The device of a network, as a table says it."""
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.device.type == "cuda":
        return torch.cuda.get_device_name(parameter.device)
    threads = torch.get_num_threads()
    return f"CPU ({threads} thread{'s' if threads > 1 else ''})"


def rounded(images: torch.Tensor, what: str) -> np.ndarray:
    """Round the only image of a batch (1, 3, H, W) to 8-bit levels: float32 (H, W, 3) in [0, 1].

    Raises:
        ValueError: a value that is not finite.
    """
    [image] = to_images(images)
    if not np.isfinite(image).all():
        raise ValueError(f"the {what} image has values that are not finite")
    return _levels(image)


def _levels(image: np.ndarray) -> np.ndarray:
    return (np.rint(np.clip(image, 0, 1) * 255) / 255).astype(np.float32)

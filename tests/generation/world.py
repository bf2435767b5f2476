"""A tiny world: a student of one layer, a real NIMA-form scorer, and a teacher that can be told to misbehave."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

from gmd_ray.config import Config, PoolConfig, StudentConfig, TeacherConfig
from gmd_ray.errors import ModelError
from gmd_ray.images.degradation.degradations import sample_rng
from gmd_ray.pairstore.schema import rows_dataset
from gmd_ray.students import ModuleStudent
from tests import PATIENCE_S

if TYPE_CHECKING:
    from gmd_ray.generation import Models


def write_photo(path: Path, size: tuple[int, int] = (16, 16)) -> None:
    """Draw smooth colors, a pure function of the file's name; `size` is (height, width)."""
    small = sample_rng(path.name).random((4, 4, 3), dtype=np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.rint(cv2.resize(small, size[::-1]) * 255).astype(np.uint8))


def write_photos(folder: Path, names: Sequence[str]) -> None:
    """Draw photos of two sizes, so that batches are grouped."""
    for number, name in enumerate(names):
        write_photo(folder / name, (16, 16) if number % 3 else (12, 20))


def write_odd_files(folder: Path) -> None:
    """Write what photo folders hold besides photos."""
    noise = sample_rng("odd").integers(0, 256, (24, 24, 3), dtype=np.uint8)
    jpeg = cv2.imencode(".jpg", noise)[1].tobytes()
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image\n")
    write_photo(folder / "one pixel.png", (1, 1))
    (folder / "twin a.jpg").write_bytes(jpeg)
    (folder / "twin b.jpg").write_bytes(jpeg)
    assert cv2.imwrite(str(folder / "sixteen bit.png"), noise.astype(np.uint16) * 257)


BROKEN = {"truncated.jpg", "empty.png", "text.png"}


def write_toy_student(path: Path, seed: int = 0) -> None:
    """Write a checkpoint of `load_toy_student`: one convolution near the identity."""
    generator = torch.Generator().manual_seed(seed)
    kernel = 0.05 * torch.randn(3, 3, 3, 3, generator=generator)
    kernel[range(3), range(3), 1, 1] += 1
    torch.save({"weight": kernel, "bias": torch.zeros(3)}, path)


def load_toy_student(cfg: StudentConfig) -> ModuleStudent:
    """Load a student of one convolution (`student.factory`). Unlike a real one it needs no import of spandrel."""
    network = torch.nn.Conv2d(3, 3, 3, padding=1)
    network.load_state_dict(torch.load(str(cfg.path), weights_only=True))
    return ModuleStudent(cfg, network)


def write_student(path: Path, seed: int = 0) -> None:
    """Write a DnCNN checkpoint as its authors save it: a bare state dict."""
    from spandrel.architectures.DnCNN import DnCNN

    torch.manual_seed(seed)
    torch.save(DnCNN(in_nc=3, out_nc=3, nc=8, nb=9, act_mode="R").state_dict(), path)


def write_scorer(path: Path, seed: int = 0) -> None:
    from gmd_ray.quality.nima import NimaScorer

    torch.manual_seed(seed)
    NimaScorer(channels=(4, 4, 4)).save_pretrained(path)


@dataclass(frozen=True)
class TeacherSpec:
    """Loads a `SharpenTeacher`; pickles into the workers."""

    log: str
    """Folder where every call leaves its ids."""
    faults: tuple[tuple[str, str], ...] = ()
    """(id, what to do on it): raise, interrupt (KeyboardInterrupt), exit, leave (os._exit), kill, hang, nan, range
    (values of -50 to 50); `kill once` kills the first worker only."""
    seconds: float = 0.0
    """Time per call."""
    hold_after: int | None = None
    """Calls after which the worker waits in the next for the file `World.release` makes, and goes on to the end."""
    sick_after: int | None = None
    """Calls after which the worker reports a broken CUDA context for ever."""
    higher: float = 1.5

    def __call__(self, cfg: TeacherConfig) -> SharpenTeacher:
        return SharpenTeacher(self, cfg)


class SharpenTeacher:
    """An unsharp mask as the teacher: cheap, and independent of the batch."""

    def __init__(self, spec: TeacherSpec, cfg: TeacherConfig) -> None:
        if cfg.path == "missing":
            raise ModelError("teacher.path=missing: no such directory")
        if cfg.path == "deadly":
            os._exit(1)
        if cfg.path == "slow":
            time.sleep(600)
        self.spec, self.calls = spec, 0
        self.fingerprint = f"sharpen-{cfg.steps}-{spec.higher}-{cfg.prompt}"

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        self.calls += 1
        with open(f"{self.spec.log}/{os.getpid()}", "a") as file:
            file.write("".join(f"{key}\n" for key in ids))
        time.sleep(self.spec.seconds)
        if self.calls - 1 == self.spec.hold_after:
            Path(self.spec.log, f"held by {os.getpid()}.mark").touch()
            wait_for(Path(self.spec.log, "released.mark").exists, 900)
        if self.spec.sick_after is not None and self.calls > self.spec.sick_after:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        blurred = F.avg_pool2d(restored, 3, stride=1, padding=1, count_include_pad=False)
        result = (restored + self.spec.higher * (restored - blurred)).clamp(0, 1)
        for key, fault in self.spec.faults:
            if key in ids:
                self._misbehave(fault, result[list(ids).index(key)])
        return result

    def _misbehave(self, fault: str, image: torch.Tensor) -> None:
        if fault == "raise":
            raise RuntimeError("this image\nis too much")
        if fault == "interrupt":
            raise KeyboardInterrupt
        if fault == "exit":
            sys.exit(3)
        if fault == "hang":
            time.sleep(3600)
        if fault == "range":
            image.mul_(100).sub_(50)
        if fault == "leave":
            os._exit(3)
        if fault == "nan":
            image.fill_(float("nan"))
        mark = Path(self.spec.log, "killed once.mark")
        if fault == "kill" or (fault == "kill once" and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def load_sharpen_teacher(cfg: TeacherConfig) -> SharpenTeacher:
    """Load a teacher as a plugin (`teacher.method`); `teacher.path` is the folder of its log."""
    return SharpenTeacher(TeacherSpec(str(cfg.path)), cfg)


class World:
    """A run directory with models, photos and the settings for them."""

    def __init__(self, root: Path, models: Path | None = None, *, on_ray: bool = False) -> None:
        """Set up a run.

        Args:
            root: the folder of all of it.
            models: another folder where the student and the scorer lie.
            on_ray: run the stages on Ray, which must be initialised; else in the process of `generate`.
        """
        self.on_ray = on_ray
        self.root, self.photos, self.log = root, root / "photos", root / "log"
        self.weights = models or root
        self.cfg = self.config()

    def build(self, photos: int) -> World:
        self.log.mkdir(parents=True)
        write_photos(self.photos, [f"{'deep/er/' if n % 4 == 0 else ''}{n:03d}.png" for n in range(photos)])
        write_toy_student(self.root / "student.pth")
        write_scorer(self.root / "scorer")
        return self

    def copy(self, root: Path) -> World:
        """The photos and the finished run at another place, the models where they were; an empty log."""
        for folder in ("photos", "run"):
            shutil.copytree(self.root / folder, root / folder)
        (root / "log").mkdir()
        return World(root, self.weights, on_ray=self.on_ray)

    def config(self) -> Config:
        cfg = Config(out=str(self.root / "run"))
        cfg.target.path = str(self.photos)
        cfg.ray.enabled = self.on_ray
        cfg.student.path = str(self.weights / "student.pth")
        cfg.student.factory = f"{__name__}:load_toy_student"
        cfg.student.pool = PoolConfig(num_cpus=0.5, batch_size=4)
        cfg.teacher.pool = PoolConfig(num_cpus=0.5, batch_size=4)
        cfg.scorer.path = str(self.weights / "scorer")
        cfg.scorer.pool = PoolConfig(num_cpus=0.5, batch_size=4)
        cfg.scorer.threshold = 5.5
        cfg.generation.rows_per_block = 6
        cfg.generation.no_progress_timeout_s = PATIENCE_S
        cfg.generation.batch_timeout_s = 0.0  # a held teacher (`TeacherSpec.hold_after`) does not hang
        return cfg

    @property
    def store(self) -> str:
        return f"{self.cfg.out}/pairs"

    def models(self, **spec: object) -> Models:
        from gmd_ray.generation import Models  # not above: the teacher's workers import this file too

        return Models(teacher=TeacherSpec(str(self.log), **spec))  # type: ignore[arg-type]

    def ids(self) -> list[str]:
        return sorted(file.relative_to(self.photos).as_posix() for file in self.photos.rglob("*.*") if file.is_file())

    def rows(self) -> dict[str, dict[str, object]]:
        """Every row of the store by id; an id that is there twice is an error."""
        rows = self.table().to_pylist()
        assert len({row["id"] for row in rows}) == len(rows)
        return {row["id"]: row for row in rows}

    def table(self) -> pa.Table:
        return rows_dataset(self.store).to_table().sort_by("id")

    def held(self) -> int:
        """Number of teachers that have waited (`TeacherSpec.hold_after`)."""
        return len(list(self.log.glob("held by *.mark")))

    def release(self) -> None:
        (self.log / "released.mark").touch()

    def projected(self) -> Counter[str]:
        """Number of times that each id was handed to the teacher."""
        return Counter(key for file in self.log.glob("[0-9]*") for key in file.read_text().splitlines())


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)

"""A small world for sweeps: a real DnCNN, a real scorer, and an unsharp mask for a teacher that keeps a log."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.evaluation.conftest import draw, save_student
from tests.generation.world import write_scorer


@dataclass(frozen=True)
class SweepWorld:
    """Folders of images and models, and the settings that name them."""

    root: Path

    @property
    def out(self) -> str:
        return str(self.root / "sweeps")

    @property
    def args(self) -> list[str]:
        """The base run, as on a command line."""
        images = self.root / "images"
        settings = {
            "out": self.out,
            "ray.enabled": "false",
            "tracking.enabled": "false",
            "student.path": self.root / "student.safetensors",
            "teacher.method": "tests.generation.world:load_sharpen_teacher",
            "teacher.path": self.root / "log",
            "scorer.path": self.root / "scorer",
            "scorer.threshold": "5.47",
            "target.path": images / "lq",
            "source.hq": images / "hq",
            "source.degradation": "noise",
            "training.steps": "2",
            "training.batch_size": "4",
            "training.patch": "16",
            "training.warmup_steps": "0",
            "evaluation.target_lq": self.root / "held_out" / "lq",
            "evaluation.target_hq": self.root / "held_out" / "hq",
            "evaluation.metrics": "[psnr]",
        }
        return [f"{key}={value}" for key, value in settings.items()]

    def projected(self) -> Counter[str]:
        """Number of times that each photo was handed to a teacher."""
        return Counter(key for file in (self.root / "log").glob("[0-9]*") for key in file.read_text().splitlines())


@pytest.fixture(scope="session")
def sweep_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and models, which no test changes."""
    root = tmp_path_factory.mktemp("sweep-models")
    save_student(root / "student.safetensors", 0, 0.3)
    write_scorer(root / "scorer")
    draw(root / "images", "lq", "hq", 6)
    draw(root / "held_out", "lq", "hq", 7)
    return root


@pytest.fixture
def sweep_world(sweep_models: Path, tmp_path: Path) -> SweepWorld:
    for name in ("student.safetensors", "scorer", "images", "held_out"):
        (tmp_path / name).symlink_to(sweep_models / name)
    (tmp_path / "log").mkdir()
    return SweepWorld(tmp_path)

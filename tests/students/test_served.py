"""The loader that MLflow calls for a registered student."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gmd_ray.config import StudentConfig
from gmd_ray.errors import DataError
from gmd_ray.students import load_student
from gmd_ray.students.served import FACTS_FILE, _load_pyfunc
from gmd_ray.tracking import model_folder
from tests.evaluation.conftest import save_student


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A registered version as far as the loader reads it."""
    save_student(tmp_path / "student.safetensors", 3, 0.5)
    (tmp_path / "about").mkdir()
    facts = {"file": "student.safetensors", "settings": {"tile": 16, "dtype": "float32"}}
    (tmp_path / FACTS_FILE).write_text(json.dumps(facts))
    return tmp_path


def test_a_batch_in_and_a_batch_out(folder: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 20, 3), np.uint8)
    served = _load_pyfunc(str(folder), {"device": "cpu"})
    restored = served.predict(images)
    assert (restored.shape, restored.dtype) == (images.shape, np.uint8)
    plain = load_student(StudentConfig(path=str(folder / "student.safetensors"), tile=16, device="cpu"))
    tensor = torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2)
    expected = (plain.restore(tensor).permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    assert np.array_equal(restored, expected)
    assert not np.array_equal(restored, images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "give RGB images as uint8"),
        (np.zeros((8, 8, 3), np.uint8), "give RGB images as uint8"),
        (np.zeros((2, 3, 8, 8), np.uint8), "give RGB images as uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), "an empty batch"),
    ],
)
def test_other_inputs_are_refused_in_one_line(folder: Path, images: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _load_pyfunc(str(folder)).predict(images)


def test_the_registry_writes_what_the_loader_reads() -> None:
    assert model_folder.FACTS_FILE == FACTS_FILE
    assert _load_pyfunc.__module__ == model_folder.LOADER
    assert set(model_folder.STUDENT_SETTINGS) <= set(vars(StudentConfig()))

"""The loader of a registered student, for `mlflow.pyfunc.load_model("models:/NAME@champion")`; MLflow is not needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gmd_ray.config import StudentConfig
from gmd_ray.errors import DataError
from gmd_ray.images.files.decode import to_8bit
from gmd_ray.images.files.encode import to_images, to_tensor
from gmd_ray.students.loading import load_student

FACTS_FILE = "about/student.json"
"""File of a registered version about its checkpoint: its name (`file`), and the `student` settings to run it with."""


class ServedStudent:
    """A student with the interface that MLflow expects: a batch of images in, a batch of images out."""

    def __init__(self, folder: str | Path, device: str = "auto") -> None:
        """Load the checkpoint of a version's folder, which `student.json` names.

        Raises:
            ModelError, ConfigError: as `load_student`.
        """
        facts = json.loads(Path(folder, FACTS_FILE).read_text())
        path = str(Path(folder, facts["file"]))
        self._student = load_student(StudentConfig(path=path, device=device, **facts["settings"]))
        self.scale = self._student.scale

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Restore a batch of images of one size.

        Args:
            model_input: RGB, uint8, shape (B, H, W, 3).
            params: not used.

        Returns:
            RGB, uint8, shape (B, H * scale, W * scale, 3).

        Raises:
            DataError: the input has another type or shape.
        """
        images = np.asarray(model_input)
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise DataError(f"{images.dtype} {images.shape}: give RGB images as uint8 of shape (B, H, W, 3)")
        if not len(images):
            raise DataError("an empty batch: give at least one image")
        restored = to_images(self._student.restore(to_tensor(list(images.astype(np.float32) / 255))))
        return np.stack([to_8bit(image) for image in restored])


def _load_pyfunc(data_path: str, model_config: dict[str, Any] | None = None) -> ServedStudent:
    """MLflow's entry; `model_config={"device": "cpu"}` chooses the device, which is `auto` by default."""
    return ServedStudent(data_path, device=(model_config or {}).get("device", "auto"))

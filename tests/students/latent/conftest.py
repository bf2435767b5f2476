"""One tiny latent diffusion student, which no test changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray.students.latent.presets import new_latent_student


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latent") / "tiny"
    new_latent_student("ldm-tiny", path)
    return path

"""Tiny latent diffusion students, which no test changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray.students.latent.presets import new_latent_student


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a student of scale 1."""
    path = tmp_path_factory.mktemp("latent") / "tiny"
    new_latent_student("ldm-tiny", path)
    return path


@pytest.fixture(scope="package")
def tiny_x2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a student of scale 2."""
    path = tmp_path_factory.mktemp("latent") / "tiny_x2"
    new_latent_student("ldm-tiny", path, scale=2)
    return path

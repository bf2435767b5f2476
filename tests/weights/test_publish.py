"""Copying models to a store: sha256sum accepts what is written, and only what changed is copied again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import fsspec
import pytest

from gmd_ray.errors import ConfigError
from gmd_ray.weights import publish
from tests.weights.test_listing import make_model


def test_sha256sum_accepts_a_published_folder_and_a_published_file(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "flux")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").write_text("of the hub's client")
    to = tmp_path / "store" / "flux"
    assert publish(folder, f"file://{to}") == 2
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=to, check=True, capture_output=True)
    files = sorted(file.relative_to(to).as_posix() for file in to.rglob("*") if file.is_file())
    assert files == ["SHA256SUMS", "model_index.json", "vae/weights.safetensors"]
    assert publish(folder / "model_index.json", str(tmp_path / "store" / "index.json")) == 1
    command = ["sha256sum", "--check", "--strict", "index.json.sha256"]
    subprocess.run(command, cwd=to.parent, check=True, capture_output=True)


def test_only_what_changed_is_copied_again_and_other_files_stay_listed(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    folder = make_model(tmp_path / "flux")
    try:
        assert publish(folder, "memory://bucket/flux") == 2
        assert publish(folder, "memory://bucket/flux") == 0
        (folder / "vae" / "weights.safetensors").write_bytes(b"9876543210")
        assert publish(folder, "memory://bucket/flux") == 1
        assert memory.cat("/bucket/flux/vae/weights.safetensors") == b"9876543210"
        publish(make_model(tmp_path / "more") / "vae", "memory://bucket/flux")
        listed = memory.cat("/bucket/flux/SHA256SUMS").decode().splitlines()
        assert [line.split()[1] for line in listed] == [
            "model_index.json",
            "vae/weights.safetensors",
            "weights.safetensors",
        ]
    finally:
        memory.rm("/bucket", recursive=True)


def test_nothing_to_copy_is_refused(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ConfigError, match="no such file or folder, or an empty one"):
            publish(source, "memory://bucket/flux")

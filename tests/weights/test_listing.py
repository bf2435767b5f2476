"""Listings of models: names, sizes, checksums of sha256sum's own making, and identities."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile

from gmd_ray.errors import ModelError
from gmd_ray.weights.listing import StoredModel, format_sums, list_model


def make_model(folder: Path) -> Path:
    (folder / "vae").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}", encoding="utf-8")
    (folder / "vae" / "weights.safetensors").write_bytes(b"0123456789")
    return folder


def sha256sum(folder: Path, *names: str) -> str:
    return subprocess.run(["sha256sum", *names], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_a_folder_is_listed_with_the_checksums_of_sha256sum(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "flux")
    sums = sha256sum(folder, "./vae/weights.safetensors", "model_index.json")
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
    found = list_model(f"file://{folder}")
    assert (found.name, found.folder) == ("flux", True)
    assert [(file.name, file.size) for file in found.files] == [
        ("model_index.json", 2),
        ("vae/weights.safetensors", 10),
    ]
    digests = {line.split()[1].removeprefix("./"): line.split()[0] for line in sums.splitlines()}
    assert {file.name: file.sha256 for file in found.files} == digests
    assert [file.tag for file in found.files] == [None, None]
    assert format_sums(digests.items()).decode() == sha256sum(folder, "model_index.json", "vae/weights.safetensors")


def test_a_single_file_has_its_checksum_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "student.pth"
    file.write_bytes(b"weights")
    assert list_model(str(file)).files[0].sha256 is None
    digest = sha256sum(tmp_path, str(file))  # with the path that it had there
    (tmp_path / "student.pth.sha256").write_text(digest, encoding="utf-8")
    found = list_model(str(file))
    assert (found.name, found.folder, len(found.files)) == ("student.pth", False, 1)
    assert found.files[0].sha256 == digest.split()[0]


def test_a_model_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    """With checksums, neither the place nor the time of copying counts; any changed byte does."""
    folder = make_model(tmp_path / "here" / "flux")
    (folder / "SHA256SUMS").write_text(sha256sum(folder, "model_index.json", "vae/weights.safetensors"))
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/models/flux", recursive=True)
    try:
        assert list_model("memory://models/flux").identity == list_model(str(folder)).identity
    finally:
        memory.rm("/models", recursive=True)
    before = list_model(str(folder)).identity
    (folder / "vae" / "weights.safetensors").write_bytes(b"9876543210")
    (folder / "SHA256SUMS").write_text(sha256sum(folder, "model_index.json", "vae/weights.safetensors"))
    assert list_model(str(folder)).identity != before


def test_without_checksums_a_change_is_seen_by_the_time(tmp_path: Path) -> None:
    file = tmp_path / "student.pth"
    file.write_bytes(b"weights")
    os.utime(file, ns=(1, 1))
    before = list_model(str(file))
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(2, 2))
    assert before.files[0].tag == "1"
    assert list_model(str(file)).identity != before.identity


@pytest.mark.parametrize(
    ("sums", "complaint"),
    [
        ("not a checksum\n", "SHA256SUMS has a line that sha256sum does not write: not a checksum"),
        (f"{'0' * 64}  gone.bin\n", "SHA256SUMS names gone.bin, which is not there"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path: Path, sums: str, complaint: str) -> None:
    folder = make_model(tmp_path / "flux")
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
    with pytest.raises(ModelError, match=complaint):
        list_model(str(folder))


def test_a_name_that_leads_out_of_the_folder_is_refused() -> None:
    """An object store takes any text as a name."""
    memory = fsspec.filesystem("memory")
    memory.store["/models/flux/../../evil.bin"] = MemoryFile(memory, "/models/flux/../../evil.bin", b"x")
    memory.pseudo_dirs.append("/models/flux")
    try:
        with pytest.raises(ModelError, match=r"which leads out of a folder"):
            list_model("memory://models/flux")
    finally:
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]


def test_nothing_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file or folder"):
        list_model(f"file://{tmp_path}/gone")
    with pytest.raises(ModelError, match="an empty folder"):
        list_model(f"file://{tmp_path}")


def test_a_listing_comes_back_from_json(tmp_path: Path) -> None:
    found = list_model(str(make_model(tmp_path / "flux")))
    assert StoredModel.from_json(found.as_json()) == found


def test_patterns_choose_files(tmp_path: Path) -> None:
    found = list_model(str(make_model(tmp_path / "flux")))
    assert [file.name for file in found.chosen(["*.json"])] == ["model_index.json"]
    assert [file.name for file in found.chosen(["vae/*", "*.json"], ["*.safetensors"])] == ["model_index.json"]

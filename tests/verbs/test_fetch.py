"""`gmd-ray fetch` of models: to the node's cache, and from a machine to a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray.cli import main
from gmd_ray.quality import fetch as downloads
from gmd_ray.quality.weight_files import WeightFile
from gmd_ray.weights import cache
from tests.weights.test_listing import make_model


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GMD_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_listed", {})
    return tmp_path / "cache" / "weights"


def test_a_folder_goes_to_a_store_and_from_there_to_the_node(
    tmp_path: Path, node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, url = make_model(tmp_path / "flux"), f"file://{tmp_path}/store/flux"
    assert main(["fetch", str(folder), "--to", url]) == 0
    assert f"{url}: 2 files copied, and the checksums of all" in capsys.readouterr().out
    assert (tmp_path / "store" / "flux" / "SHA256SUMS").read_text().count("\n") == 2
    assert main(["fetch", url]) == 0
    place = Path(capsys.readouterr().out.strip())
    assert place.is_relative_to(node)
    assert (place / "vae" / "weights.safetensors").read_bytes() == b"0123456789"
    (place / "vae" / "weights.safetensors").write_bytes(b"damaged...")
    assert main(["fetch", url]) == 0
    assert (place / "vae" / "weights.safetensors").read_bytes() == b"0123456789"


def test_files_of_metrics_go_to_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(file: WeightFile, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.name.encode())

    monkeypatch.setattr(downloads, "download", write)
    url = f"file://{tmp_path}/metrics"
    assert main(["fetch", "niqe", "brisque", "--to", url]) == 0
    names = ["brisque_svm_weights.pth", "niqe_modelparameters.mat"]
    assert sorted(file.name for file in (tmp_path / "metrics" / "pyiqa").iterdir()) == names
    lines = (tmp_path / "metrics" / "SHA256SUMS").read_text().splitlines()
    assert [line.split()[1] for line in lines] == [f"pyiqa/{name}" for name in names]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["FOLDER"], "it is on this machine already; --to PLACE copies it to a store"),
        (["FOLDER", "nima", "--to", "x"], "--to takes one model, or metrics alone"),
        (["FOLDER/gone", "--to", "x"], "no such directory"),
    ],
)
def test_what_cannot_be_fetched_is_refused(
    tmp_path: Path, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model(tmp_path / "flux")
    assert main(["fetch", *(word.replace("FOLDER", str(folder)) for word in words)]) == 2
    assert complaint in capsys.readouterr().err

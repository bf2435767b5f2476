"""Weight files downloaded from a server of this test: checks, interruptions, second calls, and workers that load."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyiqa")

from gmd_ray.cli import main
from gmd_ray.errors import ConfigError
from gmd_ray.quality.fetch import FetchError, download, fetch
from gmd_ray.quality.weight_files import WeightFile
from tests.quality.conftest import Server, write_brisque_matlab, write_niqe

NIQE = "niqe_modelparameters.mat"


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_second_call_downloads_nothing(server: Server, tmp_path: Path) -> None:
    server.files = {NIQE: b"parameters", "NRQM_model.mat": b"forests"}
    paths = fetch(["niqe", "pi", "psnr"], str(tmp_path / "weights"))
    assert paths == [tmp_path / "weights" / "pyiqa" / name for name in ("NRQM_model.mat", NIQE)]
    assert [path.read_bytes() for path in paths] == [b"forests", b"parameters"]
    assert everything(tmp_path) == ["weights/pyiqa/NRQM_model.mat", f"weights/pyiqa/{NIQE}"]
    asked = len(server.requests)
    assert fetch(["niqe", "pi"], str(tmp_path / "weights")) == paths
    assert len(server.requests) == asked == 4, "an answer and a redirect for each file"


def test_without_a_directory_files_go_where_runs_look(server: Server, empty_directory: Path) -> None:
    server.files = {NIQE: b"parameters"}
    assert fetch(["niqe"]) == [empty_directory / "pyiqa" / NIQE]


def test_the_digest_that_the_model_hub_states_is_checked(server: Server, tmp_path: Path) -> None:
    server.files = {NIQE: b"parameters"}
    server.headers = {"X-Linked-ETag": f'"{hashlib.sha256(b"others").hexdigest()}"'}
    with pytest.raises(FetchError, match=r"its SHA-256 is .* not .*; the server has another file") as caught:
        fetch(["niqe"], str(tmp_path))
    assert f"{server.address}/chaofengc/IQA-PyTorch-Weights/resolve/main/{NIQE}" in str(caught.value)
    assert everything(tmp_path) == []
    server.headers = {"X-Linked-ETag": f'"{hashlib.sha256(b"parameters").hexdigest()}"'}
    fetch(["niqe"], str(tmp_path))
    assert everything(tmp_path) == [f"pyiqa/{NIQE}"]


@pytest.mark.parametrize("digits", [8, 64])
def test_the_digest_of_the_table_is_checked(digits: int, server: Server, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(b"network").hexdigest()[:digits]
    file = WeightFile("net.pth", "checkpoints", "{hub}/models", sha256)
    server.files = {"net.pth": b"another network"}
    with pytest.raises(FetchError, match="SHA-256"):
        download(file, tmp_path / "net.pth")
    assert everything(tmp_path) == []
    server.files = {"net.pth": b"network"}
    download(file, tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == b"network"


def test_an_interrupted_download_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files, server.cut = {NIQE: b"parameters"}, 4
    with pytest.raises(FetchError, match="broke after 4 of 10 bytes; try again"):
        fetch(["niqe"], str(tmp_path))
    assert everything(tmp_path) == []


def test_what_fails_is_named_and_the_rest_is_fetched(server: Server, tmp_path: Path) -> None:
    server.files = {NIQE: b"parameters", "brisque_svm_weights.pth": b"<!DOCTYPE html>"}
    with pytest.raises(FetchError) as caught:
        fetch(["brisque", "niqe", "nrqm"], str(tmp_path))
    assert "brisque_svm_weights.pth: a web page" in str(caught.value)
    assert f"NRQM_model.mat: cannot be downloaded to {tmp_path / 'pyiqa' / 'NRQM_model.mat'}: HTTP Error 404" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
    assert everything(tmp_path) == [f"pyiqa/{NIQE}"]


def test_a_damaged_file_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "pyiqa").mkdir()
    (tmp_path / "pyiqa" / NIQE).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    server.files = {NIQE: b"parameters"}
    fetch(["niqe"], str(tmp_path))
    assert (tmp_path / "pyiqa" / NIQE).read_bytes() == b"parameters"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lpip", "did you mean 'lpips'"),
        ("ahiq", "`hf download timm/resnet50.a1_in1k` and `hf download timm/vit_base_patch8_224"),
        ("clipscore", "the weight files of clipscore are not known"),
    ],
)
def test_names_that_cannot_be_fetched(name: str, words: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        fetch(["niqe", name], str(tmp_path))
    assert words in str(caught.value)
    assert server.requests == []


def test_the_verb(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.files = {NIQE: b"parameters"}
    assert main(["fetch", "niqe", "--to", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'pyiqa' / NIQE}\n"
    assert main(["fetch", "brisque", "--to", str(tmp_path)]) == 1
    assert "HTTP Error 404" in capsys.readouterr().err


ACTOR = """
import socket, sys

def refuse(*args):
    raise AssertionError("a worker asked for the network")

socket.socket.connect = socket.getaddrinfo = refuse
import torch
from gmd_ray.quality import load_metric
torch.manual_seed(0)
for name in ("niqe", "brisque_matlab"):
    metric = load_metric(name, directory=sys.argv[1], device="cpu")
    print(name, metric(torch.rand(3, 192, 192)), metric.fingerprint)
"""


def test_a_worker_loads_from_the_directory_without_network(tmp_path: Path) -> None:
    """NIQE is given to pyiqa by its path; `brisque_matlab` is one that pyiqa finds in its cache itself."""
    write_niqe(tmp_path / "pyiqa" / NIQE)
    write_brisque_matlab(tmp_path / "pyiqa" / "brisque_matlab.mat")
    found = subprocess.run(
        [sys.executable, "-c", ACTOR, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
    )
    rows = [line.split() for line in found.stdout.splitlines()]
    assert [row[0] for row in rows] == ["niqe", "brisque_matlab"]
    assert all(float(row[1]) == float(row[1]) for row in rows)
    assert everything(tmp_path) == ["pyiqa/brisque_matlab.mat", f"pyiqa/{NIQE}"]

"""Real processes and a real S3 protocol: what passes between the store and a node, and what a kill leaves."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gmd_ray import storage
from gmd_ray.errors import ModelError
from gmd_ray.weights import cache, node_copy, publish
from tests import PATIENCE_S
from tests.servers.running import S3Server
from tests.weights.proxy import Passage, passing

pytestmark = pytest.mark.slow

COPY = """
import sys
from gmd_ray.weights import download, node_copy
download.CHUNK = 1 << 20
print(node_copy(sys.argv[1]))
"""
SIZE = 6 << 20


@pytest.fixture
def store(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Passage]:
    """An S3 server behind a counting proxy, which this process and its children use."""
    with passing(s3_server) as passage:
        for name, value in passage.server.environment.items():
            monkeypatch.setenv(name, value)
        storage._arrow_filesystem.cache_clear()
        yield passage
    storage._arrow_filesystem.cache_clear()


@pytest.fixture
def bucket(s3_server: S3Server, request: pytest.FixtureRequest) -> str:
    """The URL of a bucket of this test's own."""
    return s3_server.make_bucket(f"weights-{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}")


def make_flux(folder: Path) -> dict[str, bytes]:
    """Write a model of three files, of which one takes several requests; returns name -> content."""
    files = {
        "model_index.json": b"{}",
        "transformer/weights.safetensors": np.random.default_rng(0).bytes(SIZE),
        "vae/weights.safetensors": b"vae" * 1000,
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return files


def start_copy(url: str) -> subprocess.Popen[str]:
    """A process that copies a model to the node's cache, by requests of 1 MiB, and prints the path."""
    command = [sys.executable, "-c", COPY, url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})


def place_of(process: subprocess.Popen[str]) -> Path:
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    return Path(out.strip())


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def bytes_of(store: Passage, url: str) -> dict[str, int]:
    """Name below the URL -> bytes that the store has sent of it."""
    path = f"/{url.removeprefix('s3://')}/"
    return {key.removeprefix(path): number for key, number in store.served.items() if key.startswith(path)}


@pytest.mark.parametrize("sums", [True, False], ids=["with checksums", "without"])
def test_many_processes_of_a_node_download_each_byte_once(
    store: Passage, bucket: str, tmp_path: Path, sums: bool
) -> None:
    files = make_flux(tmp_path / "flux")
    url = f"{bucket}/flux"
    publish(tmp_path / "flux", url + store.direct)
    if not sums:
        storage.remove(*storage.open_filesystem(f"{url}/SHA256SUMS{store.direct}"))

    def slow_down(path: str, start: int, body: bytes) -> bytes:
        time.sleep(0.05)  # so that all of them ask before the first is done
        return body

    store.change = slow_down
    processes = [start_copy(url) for _ in range(4)]
    places = {place_of(process) for process in processes}
    assert len(places) == 1
    assert contents(places.pop()) == files
    sent = bytes_of(store, url)
    sent.pop("SHA256SUMS", None)
    assert sent == {name: len(data) for name, data in files.items()}


def test_a_killed_download_is_taken_up_by_the_next_process(store: Passage, bucket: str, tmp_path: Path) -> None:
    """A waiting process takes over, and asks for nothing that the killed one had written to disk."""
    files = make_flux(tmp_path / "flux")
    url = f"{bucket}/flux"
    publish(tmp_path / "flux", url + store.direct)
    name = "transformer/weights.safetensors"
    go_on = threading.Event()

    def hold(path: str, start: int, body: bytes) -> bytes:
        if path.endswith(name) and start >= SIZE // 2:
            go_on.wait(PATIENCE_S)
        return body

    store.change = hold
    first = start_copy(url)
    part = None
    until = time.monotonic() + 60
    while time.monotonic() < until:
        parts = list((tmp_path / "cache" / "weights").glob("*.parts/*"))
        part = next((file for file in parts if file.stat().st_size >= 2 << 20), None)
        if part is not None:
            break
        time.sleep(0.02)
    assert part is not None, "the large file is being written"
    waiting = start_copy(url)
    first.kill()
    first.communicate()
    kept = part.stat().st_size
    assert not list((tmp_path / "cache").rglob("transformer/weights.safetensors")), "no half file bears its name"
    before = len(store.asked)
    go_on.set()
    place = place_of(waiting)
    assert contents(place) == files
    assert not part.parent.exists()
    asked = sorted({start for path, start in store.asked[before:] if path.endswith(name)})
    assert kept >= 2 << 20
    assert asked == list(range(kept, SIZE, 1 << 20)), "nothing but what the killed process had not written"


def test_bytes_damaged_on_the_way_are_fetched_again_and_lasting_damage_is_refused_by_name(
    store: Passage, bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_flux(tmp_path / "flux")
    url = f"{bucket}/flux"
    publish(tmp_path / "flux", url + store.direct)
    spoilt: list[str] = []

    def spoil(path: str, start: int, body: bytes) -> bytes:
        if not path.endswith("vae/weights.safetensors") or len(spoilt) >= limit:
            return body
        spoilt.append(path)
        return b"X" + body[1:]

    store.change, limit = spoil, 1
    assert contents(node_copy(url)) == files
    assert "vae/weights.safetensors: its SHA-256 is " in caplog.text
    assert "it is downloaded once more" in caplog.text

    monkeypatch.setenv("GMD_RAY_CACHE", str(tmp_path / "another"))
    limit = 100
    with pytest.raises(ModelError, match=r"flux/vae/weights\.safetensors: its SHA-256 is .*; copy it to the store ag"):
        node_copy(url)
    assert not list((tmp_path / "another").rglob("vae/weights.safetensors"))
    limit = 0
    assert contents(node_copy(url)) == files, "the next process of the node gets it once the store is well"


def test_an_object_that_is_replaced_during_its_download_is_not_used(
    store: Passage, bucket: str, tmp_path: Path
) -> None:
    """Without checksums, the ETag tells; the next process takes the new version."""
    url = f"{bucket}/student.pth"
    storage.write_bytes(url + store.direct, b"first" * 1000)

    def replace(path: str, start: int, body: bytes) -> bytes:
        store.change = lambda path, start, body: body
        storage.write_bytes(url + store.direct, b"other" * 1000)
        return body

    store.change = replace
    with pytest.raises(ModelError, match=r"student\.pth: it was replaced during the download"):
        node_copy(url)
    assert node_copy(url).read_bytes() == b"other" * 1000


def test_a_node_without_a_connection_uses_its_copy(
    store: Passage, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = make_flux(tmp_path / "flux")
    publish(tmp_path / "flux", f"{bucket}/flux{store.direct}")
    copy = node_copy(f"{bucket}/flux")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the discard port: nothing listens there
    storage._arrow_filesystem.cache_clear()
    monkeypatch.setattr(cache, "_listed", {})
    assert node_copy(f"{bucket}/flux") == copy
    assert contents(copy) == files
    assert f"its copy in {tmp_path}/cache/weights is used" in caplog.text

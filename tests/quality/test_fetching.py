"""How weights are refused, probed for and fetched; the only servers are threads of this test."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("pyiqa")

from gmd_ray.quality import MetricUnavailable, fetching, load_metric


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without HF_HUB_OFFLINE and without a proxy."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address that serves it."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield folder, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pyiqa's cache, empty; it is a constant of the module, evaluated at import."""
    from pyiqa.utils import download_util

    folder = tmp_path / "cache"
    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(folder))
    return folder


def _niqe_comes_from(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyiqa.archs import niqe_arch

    monkeypatch.setitem(niqe_arch.default_model_urls, "url", url)


def test_refusal_is_lifted_afterwards(served: tuple[Path, str], online: None) -> None:
    folder, address = served
    (folder / "file").write_text("here")
    with fetching.refused_downloads() as refused, pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{address}/file")
    assert refused.url == f"{address}/file"
    assert urllib.request.urlopen(f"{address}/file").read() == b"here"


def test_hub_client_is_refused_too(online: None, tmp_path: Path) -> None:
    from huggingface_hub import constants, hf_hub_download

    with fetching.refused_downloads() as refused, pytest.raises(OSError) as caught:
        hf_hub_download("owner/model", "weights.bin", cache_dir=tmp_path)
    url = fetching.wanted_url(caught.value, refused)
    assert url is not None
    assert url.startswith(constants.ENDPOINT)
    assert url.endswith("/weights.bin")
    assert constants.HF_HUB_OFFLINE is False


def test_error_of_another_kind_wants_nothing() -> None:
    with fetching.refused_downloads() as refused:
        assert fetching.wanted_url(ValueError("Cannot read the file"), refused) is None


def test_reachable_server(served: tuple[Path, str], online: None) -> None:
    assert fetching.reachable(f"{served[1]}/absent/file.pth")


def test_closed_port(online: None) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert not fetching.reachable(f"http://127.0.0.1:{port}/file.pth")


def test_silent_server_is_given_up_in_seconds(online: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        assert not fetching.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/file.pth")
        assert time.monotonic() - start < 3 * fetching.PROBE_SECONDS


def test_users_offline_mode_is_kept(served: tuple[Path, str], online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not fetching.reachable(served[1])


def test_missing_weights_are_downloaded_where_the_server_answers(
    served: tuple[Path, str], online: None, cache: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    local = shared_data / "weights" / "niqe_from_basicsr.mat"
    (folder / "niqe_modelparameters.mat").write_bytes(local.read_bytes())
    _niqe_comes_from(f"{address}/niqe_modelparameters.mat", monkeypatch)
    metric = load_metric("niqe", device="cpu")
    assert (cache / "niqe_modelparameters.mat").read_bytes() == local.read_bytes()
    assert metric.fingerprint == load_metric("niqe", weights=str(local), device="cpu").fingerprint  # type: ignore[attr-defined]
    assert socket.getdefaulttimeout() is None


def test_server_without_the_file(
    served: tuple[Path, str], online: None, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _niqe_comes_from(f"{served[1]}/IQA-PyTorch-Weights/gone.mat", monkeypatch)
    with pytest.raises(MetricUnavailable, match="404") as caught:
        load_metric("niqe", device="cpu")
    assert str(cache / "gone.mat") in str(caught.value)
    assert "evaluation.weights.niqe=PATH" in str(caught.value)


def test_unreachable_server_is_one_quick_line(online: None, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        _niqe_comes_from(f"http://127.0.0.1:{silent.getsockname()[1]}/IQA-PyTorch-Weights/niqe.mat", monkeypatch)
        start = time.monotonic()
        with pytest.raises(MetricUnavailable) as caught:
            load_metric("niqe", device="cpu")
        assert time.monotonic() - start < 15
    assert "niqe.mat is not cached and cannot be downloaded" in str(caught.value)
    assert str(cache / "niqe.mat") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_safe_loading_is_forced_and_lifted(tmp_path: Path) -> None:
    torch.save({"path": tmp_path}, tmp_path / "pickled.pth")  # a Path is no tensor
    assert torch.load(tmp_path / "pickled.pth", weights_only=False) == {"path": tmp_path}
    with fetching.safe_and_quiet(), pytest.raises(Exception, match=r"[Ww]eights"):
        torch.load(tmp_path / "pickled.pth", weights_only=False)
    assert torch.load(tmp_path / "pickled.pth", weights_only=False) == {"path": tmp_path}
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_clip_imports_without_pkg_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after setuptools 82: the module cannot be found."""
    pytest.importorskip("clip")
    for name in [name for name in sys.modules if name.split(".")[0] in ("clip", "pkg_resources")]:
        monkeypatch.delitem(sys.modules, name)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pkg_resources" else real(name, *a)
    )
    with fetching.pkg_resources_for_clip():
        shim = sys.modules["pkg_resources"]
        import clip  # type: ignore[import-untyped]

        assert clip.tokenize(["a photo"]).shape == (1, 77)
        assert shim.packaging.version.parse("1.10") > shim.packaging.version.parse("1.9")
    assert "pkg_resources" not in sys.modules

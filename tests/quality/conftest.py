"""Fixtures of the tests of weight files: an empty weights directory, a local server, and tiny files of real formats."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture
def empty_directory(tmp_path: Path) -> Iterator[Path]:
    """torch's hub directory, empty, whatever this machine has downloaded before."""
    before = torch.hub.get_dir()
    hub = tmp_path / "hub"
    torch.hub.set_dir(str(hub))
    yield hub
    torch.hub.set_dir(before)


class Server:
    """A server of this test that stands for the model hub; `requests` holds the path of each answered request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        """File name -> content; any other name is answered by 404."""
        self.headers: dict[str, str] = {}
        """Headers of the redirect that leads to each file, as the model hub answers."""
        self.cut: int | None = None
        """Bytes after which the connection is closed."""
        self.requests: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                name = self.path.rpartition("/")[2]
                content = server.files.get(name)
                if content is None:
                    self.send_error(404)
                elif "/resolve/" in self.path:
                    self.send_response(302)
                    self.send_header("Location", f"/store/{name}")
                    for key, value in server.headers.items():
                        self.send_header(key, value)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content[: server.cut])

            def log_message(self, *args: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that weight files of the model hub come from, reached without a proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = Server()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    yield server
    server.close()


def write_niqe(path: Path) -> None:
    """A weight file as pyiqa's NIQE reads it: a Gaussian of 36 features, here a standard one."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"mu_prisparam": np.zeros((1, 36)), "cov_prisparam": np.eye(36)})


def write_brisque_matlab(path: Path) -> None:
    """A weight file as pyiqa's `brisque_matlab` reads it: an SVM of three support vectors."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    vectors = np.linspace(-1, 1, 3 * 36).reshape(3, 36)
    savemat(path, {"sv": vectors, "sv_coef": np.array([[1.0], [-2.0], [3.0]])})

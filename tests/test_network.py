"""Servers that answer, refuse, are not there, or say nothing at all."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from gmd_ray.network import reachable
from tests import PATIENCE_S


@pytest.fixture
def server() -> Iterator[str]:
    """Answers 404 to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/deep/down"
        httpd.shutdown()
        thread.join()


def test_a_refusal_is_an_answer_and_silence_is_none(server: str) -> None:
    with socket.socket() as closed, socket.create_server(("127.0.0.1", 0)) as silent:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
        mute = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        start = time.monotonic()
        assert reachable([server, nobody, mute]) == {server: True, nobody: False, mute: False}
        assert time.monotonic() - start < PATIENCE_S, "it waited for the one that is silent"
    assert reachable([]) == {}

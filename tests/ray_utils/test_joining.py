"""Answers at the address of a cluster, and the reactions of a driver; gRPC servers stand in for cluster heads."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest

from gmd_ray.errors import GmdError
from gmd_ray.ray_utils.joining import door
from tests import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a" * 64
ALONE = "GMD_TEST_ALONE"
alone = pytest.mark.skipif(ALONE not in os.environ, reason="runs in a process of its own")


class Head(grpc.GenericRpcHandler):
    """Answers as the head of a cluster: to whoever shows the token, or to all where it has none."""

    def __init__(self, token: str | None, call: str = "/ray.rpc.NodeInfoGcsService/GetClusterId") -> None:
        self._token, self._call = token, call

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method != self._call:
            return None
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, question: bytes, context: grpc.ServicerContext) -> bytes:
        given = dict(context.invocation_metadata()).get("authorization")
        if self._token is not None and given != f"Bearer {self._token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""


@contextmanager
def served(handler: grpc.GenericRpcHandler) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2), handlers=[handler])
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_in_a_process_of_its_own() -> None:
    """The other tests of this file: they change what Ray's core in a process takes for its token, for all time."""
    if ALONE in os.environ:
        pytest.skip("this is that process")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", __file__],
        capture_output=True, text=True, timeout=300, cwd=ROOT, env={**os.environ, ALONE: "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b1[0-9] passed, 1 skipped", done.stdout), done.stdout


@pytest.fixture(autouse=True)
def no_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def has_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str, token: str = TOKEN) -> None:
    file = tmp_path / ".ray" / "auth_token" if how == "home" else tmp_path / "token"
    file.parent.mkdir(exist_ok=True)
    file.write_text(token)
    if how == "file":
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    elif how == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)


@alone
@pytest.mark.parametrize("how", ["home", "file", "variable"])
def test_the_mode_is_that_of_the_cluster(how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    has_token(monkeypatch, tmp_path, how)
    with served(Head(TOKEN)) as address:
        with door(address):
            assert os.environ["RAY_AUTH_MODE"] == "token"
        assert "RAY_AUTH_MODE" not in os.environ
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        with door(address):
            assert os.environ["RAY_AUTH_MODE"] == "token"
        assert os.environ["RAY_AUTH_MODE"] == "token"
    monkeypatch.delenv("RAY_AUTH_MODE")
    with served(Head(None)) as address, door(address):
        assert os.environ["RAY_AUTH_MODE"] == "disabled", "with a token at hand Ray would use it, and lose calls"


@alone
@pytest.mark.parametrize(
    ("variables", "token", "line"),
    [
        ({}, TOKEN, "wants a token, and there is none: RAY_AUTH_MODE=token with RAY_AUTH_TOKEN, .*~/.ray/auth_token"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": TOKEN}, TOKEN, "RAY_AUTH_MODE=disabled sends none: unset it"),
        ({"RAY_AUTH_TOKEN": "b" * 64}, TOKEN, "does not take the token of RAY_AUTH_TOKEN: RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_TOKEN_PATH": "/not/there"}, TOKEN, "wants a token; .*RAY_AUTH_TOKEN_PATH.*/not/there"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}, None, "no token authentication.* unset RAY_AUTH_MODE"),
    ],
)
def test_who_is_not_let_in_is_told_in_one_line(
    variables: dict[str, str], token: str | None, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with served(Head(token)) as address:
        with pytest.raises(GmdError, match=rf"^ray\.address={address}: .*{line}") as caught, door(address):
            pytest.fail("it went in")
        assert "\n" not in str(caught.value)


def refused(address: str) -> str:
    with pytest.raises(GmdError) as caught, door(address):
        pytest.fail("it went in")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@alone
def test_a_place_that_is_no_cluster_is_one_line_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("0.0.0.0", 0), BaseHTTPRequestHandler) as server:
        port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert "does not answer as the head of a Ray cluster" in refused(f"127.0.0.1:{port}")
        server.shutdown()
    assert "no Ray cluster answers at" in refused(f"127.0.0.1:{port}")
    with served(Head(None, "/ray.rpc.SomethingElse/GetClusterId")) as address:
        assert "UNIMPLEMENTED" in refused(address)
    monkeypatch.setattr("gmd_ray.ray_utils.joining.ANSWER_S", 0.5)
    with socket.create_server(("0.0.0.0", 0)) as silent:
        assert "DEADLINE_EXCEEDED" in refused(f"127.0.0.1:{silent.getsockname()[1]}")
    assert "no Ray cluster answers at" in refused("127.0.0.1:99999")
    assert "no Ray cluster answers at" in refused("nobody.invalid:6379")
    for address in ("127.0.0.1", "head", "localhost:abc"):
        assert f"ray.address={address}: " in refused(address)


@alone
def test_tls_and_clients_are_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    with door("ray://127.0.0.1:1"):
        assert "RAY_AUTH_MODE" not in os.environ
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with door("127.0.0.1:1"):
        assert "RAY_AUTH_MODE" not in os.environ


JOINS = """
import sys
import numpy as np
import ray
from gmd_ray.config import Config
from gmd_ray.ray_utils.session import ray_session

@ray.remote
def total(refs):
    return [int(np.sum(ray.get(ref, timeout=120))) for ref in refs]

cfg = Config()
cfg.ray.address = sys.argv[1]
with ray_session(cfg):
    refs = [ray.put(np.ones(300_000)), ray.put(2)]
    print(ray.get(total.remote(refs), timeout=200))  # the worker asks this process for both
"""


@pytest.mark.slow
@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_a_driver_joins_a_cluster_without_being_told(mode: str, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "RAY_AUTH_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += ["--include-dashboard=false", "--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats"]
    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env={**environment, "RAY_AUTH_MODE": mode})
    try:
        deadline = time.monotonic() + PATIENCE_S
        while "Ray runtime started" not in (tmp_path / "head.log").read_text():
            assert head.poll() is None, (tmp_path / "head.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "head.log").read_text()
            time.sleep(0.2)
        joined = subprocess.run(
            [sys.executable, "-c", JOINS, f"127.0.0.1:{port}"],
            capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT, env=environment,
        )  # fmt: skip
        assert (joined.returncode, joined.stdout.strip()) == (0, "[300000, 2]"), joined.stderr
        assert "gcs_client" not in joined.stderr
    finally:
        head.terminate()
        head.wait(PATIENCE_S)

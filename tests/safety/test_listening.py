"""Pages are served to this machine alone, unless asked otherwise."""

from __future__ import annotations

import os

import pytest

from gmd_ray.cli import parse
from gmd_ray.serving.server import PageServer, Request, Response
from tests.ray_utils.sockets import LOOPBACK, listening


class NoSite:
    largest_body = 0

    def admit(self, request: Request) -> None:
        pass

    def answer(self, request: Request) -> Response:
        raise AssertionError("nobody asks")


@pytest.mark.parametrize("words", [["serve", "run"], ["study", "serve", "folder"]])
def test_serve_and_study_serve_listen_on_loopback_by_default(words: list[str]) -> None:
    before = set(listening(os.getpid()))
    server = PageServer(NoSite(), parse(words).host, 0)
    try:
        [(_, address, port)] = set(listening(os.getpid())) - before
    finally:
        server.server_close()
    assert port == server.port
    assert address in LOOPBACK


def test_another_host_is_seen_to_be_open() -> None:
    before = set(listening(os.getpid()))
    server = PageServer(NoSite(), parse(["serve", "run", "--host", "0.0.0.0"]).host, 0)
    try:
        [(_, address, _)] = set(listening(os.getpid())) - before
    finally:
        server.server_close()
    assert address not in LOOPBACK

"""The server by real requests: too large, too slow, from elsewhere or of another name: none reaches the site."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator

import pytest

from gmd_ray.errors import ConfigError
from gmd_ray.serving import server as module
from gmd_ray.serving.server import PageServer, Refusal, Request, Response, is_loopback, new_token, token_hash
from tests import PATIENCE_S


class EchoSite:
    """Answers with the path, and fails on request."""

    largest_body = 100

    def __init__(self) -> None:
        self.seen: list[Request] = []

    def admit(self, request: Request) -> None:
        if request.path == "/closed":
            raise Refusal(404, "There is nothing at this address.")

    def answer(self, request: Request) -> Response:
        self.seen.append(request)
        if request.path == "/broken":
            raise KeyError("a bug")
        return Response(f"{request.method} {request.path} {dict(request.query)} {len(request.body)}".encode())


@pytest.fixture
def site() -> EchoSite:
    return EchoSite()


@pytest.fixture
def server(site: EchoSite) -> Iterator[PageServer]:
    running = PageServer(site, port=0)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def ask(
    server: PageServer, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, named)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text, response.headers


def test_a_page_comes_with_the_headers_that_keep_it_to_itself(server: PageServer) -> None:
    status, text, headers = ask(server, "/a%20b?x=1&y=")
    assert (status, text) == (200, "GET /a b {'x': '1', 'y': ''} 0")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert "Python" not in headers["Server"]
    assert ask(server, "/a", "HEAD")[:2] == (200, "")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[bad"])
def test_a_loopback_server_answers_to_no_other_name(server: PageServer, site: EchoSite, host: str) -> None:
    assert ask(server, "/", Host=host)[0] == 421
    assert site.seen == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:9", "[::1]:1"])
def test_it_answers_to_its_own(server: PageServer, host: str) -> None:
    assert ask(server, "/", Host=host)[0] == 200


def test_a_proxys_name_is_accepted_where_it_is_given(site: EchoSite) -> None:
    with PageServer(site, port=0, names=["study.example.org"]) as server:
        assert server.names is not None
        assert {"study.example.org", "localhost"} <= set(server.names)


JSON = "application/json"


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content_Type": JSON}, b"{}", 200),
        ({"Content_Type": JSON, "Sec_Fetch_Site": "same-origin"}, b"{}", 200),
        ({"Content_Type": JSON, "Sec_Fetch_Site": "cross-site"}, b"{}", 403),
        ({"Content_Type": "text/plain"}, b"{}", 415),
        ({"Content_Type": "multipart/form-data; boundary=x"}, b"{}", 415),
        ({}, b"{}", 415),
        ({"Content_Type": JSON}, b"x" * 100, 200),
        ({"Content_Type": JSON}, b"x" * 101, 413),
        ({"Content_Type": JSON, "Content_Length": "-1"}, b"", 411),
        ({"Content_Type": JSON, "Content_Length": "9" * 30}, b"", 413),
        ({"Content_Type": JSON, "Transfer_Encoding": "chunked"}, b"", 411),
    ],
)
def test_a_body_is_bounded_and_comes_from_the_sites_own_pages(
    server: PageServer, site: EchoSite, headers: dict[str, str], body: bytes, status: int
) -> None:
    if "Transfer_Encoding" in headers:
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as raw:
            raw.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            raw.sendall(b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
            assert f" {status} ".encode() in raw.recv(4000).splitlines()[0]
    else:
        assert ask(server, "/post", "POST", body, **headers)[0] == status
    assert len(site.seen) == (status == 200)


def test_a_closed_path_is_refused_before_its_body_is_read(server: PageServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as raw:
        raw.sendall(b"POST /closed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n")  # and no body at all
        assert b" 404 " in raw.recv(4000).splitlines()[0]


def test_other_methods_are_unknown(server: PageServer) -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        assert ask(server, "/", method)[0] == 501


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("address", ["http://[bad/", "x", "http://127.0.0.1", "?a=b", "*", "r/token/", "#"])
def test_an_address_that_is_none_is_refused(server: PageServer, site: EchoSite, method: str, address: str) -> None:
    """The site sees paths that begin with a slash alone, and never has to fail at another."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as raw:
        raw.sendall(f"{method} {address} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
        assert b" 400 " in raw.recv(4000).splitlines()[0]
    assert site.seen == []


def test_a_bug_shows_no_trace_to_the_client(server: PageServer) -> None:
    status, text, _ = ask(server, "/broken")
    assert status == 500
    assert "KeyError" not in text
    assert "bug" not in text


def test_who_says_nothing_is_cut_off(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as silent:
        assert silent.recv(100) == b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: a/b\r\nContent-Length: 50\r\n\r\nhalf")
        assert slow.recv(100) == b""
    assert ask(server, "/")[0] == 200


def test_too_many_connections_at_once_are_closed(site: EchoSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 2)
    server = PageServer(site, port=0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) for _ in range(2)]
    for each in held:
        each.sendall(b"GET / HTTP/1.1\r\n")  # an unfinished head keeps its thread
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as third:
        assert third.recv(100) == b""
    for each in held:
        each.close()
    server.shutdown()
    server.server_close()


def test_an_address_that_cannot_be_used_is_one_line(server: PageServer, site: EchoSite) -> None:
    for host, port in (("127.0.0.1", server.port), ("203.0.113.7", 0), ("127.0.0.1", 70_000)):
        with pytest.raises(ConfigError, match="cannot listen there"):
            PageServer(site, host, port)


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))


def test_tokens_are_long_and_their_hash_is_sha256() -> None:
    assert len({new_token() for _ in range(50)}) == 50
    assert min(len(new_token()) for _ in range(20)) >= 32
    assert token_hash("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_large_bodies_are_few_at_a_time(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE_BODY", 50)
    for _ in range(module.MAX_LARGE_BODIES):
        assert server.large_bodies.acquire(blocking=False)
    sent = {"method": "POST", "Content_Type": "image/png"}
    assert ask(server, "/", body=bytes(50), **sent)[0] == 503
    assert ask(server, "/", body=bytes(49), **sent)[0] == 200
    server.large_bodies.release()
    assert [ask(server, "/", body=bytes(50), **sent)[0] for _ in range(2)] == [200, 200], "its place is free again"

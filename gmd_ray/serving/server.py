"""A small HTTP server on the standard library: a site answers requests, and the server bounds what reaches it.

Bodies, times and connections are bounded. A page may load nothing from elsewhere and run no script but the site's own
files. Requests are not logged, since their paths hold tokens.

On a loopback address, the header `Host` must name this machine: otherwise any web page that its user visits could reach
the server under a name of its own (DNS rebinding).
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import logging
import secrets
import socket
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from gmd_ray.errors import ConfigError
from gmd_ray.text import one_line

log = logging.getLogger("gmd_ray")

LOOPBACK = "127.0.0.1"
PORT = 8765
TIMEOUT_S = 30.0
"""Seconds that a client may keep the server waiting for the next bytes."""
MAX_CONNECTIONS = 256
LARGE_BODY = 1_000_000
"""Bytes from which on a body counts as large."""
MAX_LARGE_BODIES = 8
"""Large bodies that are in memory at a time, read or being answered."""
HTML, TEXT, JSON = "text/html; charset=utf-8", "text/plain; charset=utf-8", "application/json"
OWN_FILES = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Content-Security-Policy of a page: nothing from elsewhere, and no script or style within the page itself."""
_HEADERS = {
    "Content-Security-Policy": OWN_FILES,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain", "")
"""Types that a page of another site may send without asking."""


@dataclass(frozen=True)
class Request:
    """One request of a client."""

    method: str
    """GET or POST; HEAD comes as GET."""
    path: str
    """The path without percent signs; it begins with a slash."""
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Message = field(default_factory=Message)
    body: bytes = b""


@dataclass(frozen=True)
class Response:
    """The answer to a request."""

    body: bytes
    kind: str = HTML
    """The media type."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers beside or instead of those that every answer has."""

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Response:
        """An answer for a script."""
        return cls(json.dumps(value).encode(), JSON, status)


class Refusal(Exception):  # noqa: N818 -- an answer to a client, not an error of the program
    """A request that is not answered: status and one line of text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Site(Protocol):
    """The part that knows pages. Its methods are called by many threads at once."""

    largest_body: int
    """Bytes that the body of a request may have."""

    def admit(self, request: Request) -> None:
        """Look at a request before its body is read.

        Raises:
            Refusal: the client may not have this path.
        """
        ...

    def answer(self, request: Request) -> Response:
        """Answer a request.

        Raises:
            Refusal: the request cannot be met.
        """
        ...


def not_found() -> Refusal:
    """The refusal of a path that does not exist, and of one that the client may not know to exist."""
    return Refusal(404, "There is nothing at this address.")


def new_token() -> str:
    """A secret for a URL: 192 random bits, 32 characters."""
    return secrets.token_urlsafe(24)


def token_hash(token: str) -> str:
    """The SHA-256 of a token in hexadecimal digits, which may be stored where the token may not."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class PageServer(ThreadingHTTPServer):
    """A server of one site, with one thread for each connection."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, site: Site, host: str = LOOPBACK, port: int = PORT, names: Collection[str] = ()) -> None:
        """Bind the address; `serve_forever` begins to answer.

        Args:
            site: answers the requests.
            host: address to listen on.
            port: 0 takes any free one; see `port`.
            names: host names of a proxy in front, which a loopback server accepts too.

        Raises:
            ConfigError: the address cannot be used.
        """
        self.site = site
        self.names = {host, "localhost", LOOPBACK, "::1", *names} if is_loopback(host) else None
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.large_bodies = threading.BoundedSemaphore(MAX_LARGE_BODIES)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--host {host} --port {port}: cannot listen there ({one_line(error)}); give another port, or 0"
            ) from error

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """Address of the first page, without a final slash; this machine's name where it listens on every address."""
        host = str(self.server_address[0])
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def server_bind(self) -> None:
        # HTTPServer asks the name service for this machine's name here, which can take seconds and is not used.
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection broke", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = TIMEOUT_S
    server_version, sys_version = "gmd_ray", ""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name for it
        """Log nothing: paths hold tokens."""

    def _answer(self, method: str) -> None:
        try:
            response = self._response(method)
        except Refusal as refusal:
            response = Response(f"{refusal}\n".encode(), TEXT, refusal.status)
        except OSError:  # the client went away, or kept the server waiting
            self.close_connection = True
            return
        except Exception:
            log.exception("a page could not be made")
            response = Response(b"The server failed at this; its log says why.\n", TEXT, 500)
        self._send(response)

    def _response(self, method: str) -> Response:
        self._check_host()
        try:
            address = urlsplit(self.path)
        except ValueError as error:
            raise Refusal(400, "This is no address.") from error
        path = unquote(address.path)
        if not path.startswith("/"):
            raise Refusal(400, "This is no address.")
        request = Request(method, path, dict(parse_qsl(address.query, keep_blank_values=True)), self.headers)
        self.server.site.admit(request)
        if method != "POST":
            return self.server.site.answer(request)
        self._check_origin()
        length = self._length()
        with self._place_for(length):
            return self.server.site.answer(Request(method, path, request.query, self.headers, self._body(length)))

    def _check_host(self) -> None:
        if self.server.names is None:
            return
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            name = None
        if name not in self.server.names:
            raise Refusal(421, "This server does not go by that name.")

    def _check_origin(self) -> None:
        """Refuse what a page of another site may send on behalf of a person who is admitted here."""
        if self.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise Refusal(403, "Only this site's own pages may send that.")
        if self.headers.get("Content-Type", "").partition(";")[0].strip().lower() in _FORMS:
            raise Refusal(415, "Send JSON or a picture.")

    def _length(self) -> int:
        """The length of the body that the client is about to send."""
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise Refusal(411, "Say the length of the body.")
        if len(length) > 12 or int(length) > self.server.site.largest_body:
            raise Refusal(413, f"Too large: at most {self.server.site.largest_body:,} bytes.")
        return int(length)

    @contextlib.contextmanager
    def _place_for(self, length: int) -> Iterator[None]:
        """Hold one of the places for large bodies, so that those who wait for an answer do not fill the memory."""
        if length < LARGE_BODY:
            yield
            return
        if not self.server.large_bodies.acquire(blocking=False):
            raise Refusal(503, "Others are sending pictures; try again in a moment.")
        try:
            yield
        finally:
            self.server.large_bodies.release()

    def _body(self, length: int) -> bytes:
        body = self.rfile.read(length)
        if len(body) < length:
            raise Refusal(400, "The body ends early.")
        return body

    def _send(self, response: Response) -> None:
        try:
            self.send_response(response.status)
            for name, value in {**_HEADERS, **response.headers, "Content-Type": response.kind}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(response.body)
        except OSError:
            self.close_connection = True

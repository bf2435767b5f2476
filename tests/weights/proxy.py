"""A server between the tests and the S3 store that counts what is read, and damages or withholds it when asked."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from tests.servers.running import S3Server


@dataclass
class Passage:
    """An S3 server behind a proxy, and what came through it."""

    server: S3Server
    """The proxy, to be used as the S3 server itself."""
    direct: str
    """Options of a URL, `?scheme=...`, by which it goes to the store directly: uploads do not pass the proxy."""
    served: Counter[str] = field(default_factory=Counter)
    """Path of an object, `/bucket/key` -> bytes of its content that clients have been sent."""
    asked: list[tuple[str, int]] = field(default_factory=list)
    """Path of an object and place in it, of each read in the order of the requests."""
    change: Callable[[str, int, bytes], bytes] = lambda path, start, body: body
    """Called with an object's path, and the place and content of what is read of it, before that is sent."""


@contextlib.contextmanager
def passing(behind: S3Server) -> Iterator[Passage]:
    """Start a proxy in front of an S3 server, on a free port of the loopback address."""
    target = urlsplit(behind.url).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            connection = http.client.HTTPConnection(target, timeout=60)
            connection.request(self.command, self.path, headers=dict(self.headers.items()))
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            path = unquote(urlsplit(self.path).path)
            if self.command == "GET" and answer.status in (200, 206) and not urlsplit(self.path).query:
                start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
                passage.asked.append((path, start))
                body = passage.change(path, start, body)
                passage.served[path] += len(body)
            self.send_response(answer.status)
            for key, value in answer.getheaders():
                if key.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(key, value)
            size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", size or "0")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client that has been killed
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Keep quiet."""

    for verb in ("GET", "HEAD"):
        setattr(Handler, f"do_{verb}", Handler._pass)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    direct = f"?scheme=http&endpoint_override={target}"
    passage = Passage(S3Server(f"http://127.0.0.1:{proxy.server_address[1]}"), direct)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield passage
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()

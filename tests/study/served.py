"""A served study, and requests to it as a rater's browser sends them."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

from gmd_ray.serving.server import PageServer
from gmd_ray.study.answers import AnswerBook
from gmd_ray.study.folder import Study
from gmd_ray.study.site import StudySite
from tests import PATIENCE_S


@contextlib.contextmanager
def running(study: Study) -> Iterator[tuple[PageServer, AnswerBook]]:
    """The study on a free port of this machine."""
    book = AnswerBook(study)
    server = PageServer(StudySite(study, book), port=0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server, book
    finally:
        server.shutdown()
        server.server_close()


def get(server: PageServer, path: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body, response.headers


def post(server: PageServer, token: str, value: Any) -> tuple[int, Any]:
    """Post an answer; returns the status, and the JSON of the reply (None where it is none)."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    connection.request("POST", f"/r/{token}/answers", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    is_json = response.headers["Content-Type"] == "application/json"
    return response.status, json.loads(text) if is_json else None


def page_data(page: bytes) -> dict[str, Any]:
    """The data block of a rater's page."""
    found = re.search(rb'<script type="application/json" id="study">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data

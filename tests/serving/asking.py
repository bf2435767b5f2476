"""Requests to a served run, and a picture to send."""

from __future__ import annotations

import http.client
import io

import numpy as np
from PIL import Image

from gmd_ray.serving.server import PageServer
from tests import PATIENCE_S


def get(server: PageServer, path: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body, response.headers


def send(server: PageServer, data: bytes, path: str = "/restored") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    connection.request("POST", path, data, {"Content-Type": "application/octet-stream"})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def png(side: int = 20, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

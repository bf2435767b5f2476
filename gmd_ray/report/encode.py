"""The pictures of a page, encoded so that all of them together stay within a number of bytes."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection
from functools import partial

import cv2
import numpy as np

BUDGET = 10_500_000
"""Bytes of all pictures of a report in base64, which leaves room for the rest of its 15 MB."""
QUALITIES = (96, 92, 85, 72, 50)
"""JPEG qualities in the order in which they are tried, after lossless WebP."""


def encode_pictures(pngs: Collection[bytes], budget: int = BUDGET) -> dict[bytes, str] | None:
    """Encode pictures as `data:` URIs: as lossless WebP where they fit, else as JPEG of the best quality that fits.

    Args:
        pngs: 8-bit PNGs.
        budget: bytes of all URIs together.

    Returns:
        The URI of each PNG; None where they do not fit at the lowest quality.
    """
    images = {png: _pixels(png) for png in dict.fromkeys(pngs)}
    encoders: list[Callable[[np.ndarray], str]] = [_lossless, *(partial(_jpeg, quality=q) for q in QUALITIES)]
    for encode in encoders:
        uris = _within(images, encode, budget)
        if uris is not None:
            return uris
    return None


def _within(
    images: dict[bytes, np.ndarray], encode: Callable[[np.ndarray], str], budget: int
) -> dict[bytes, str] | None:
    uris, left = {}, budget
    for png, image in images.items():
        uris[png] = encode(image)
        left -= len(uris[png])
        if left < 0:
            return None
    return uris


def _pixels(png: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None, "a picture that this program encoded"
    return image


def _lossless(image: np.ndarray) -> str:
    return _uri("webp", image, [cv2.IMWRITE_WEBP_QUALITY, 101])  # above 100 is OpenCV's sign for lossless


def _jpeg(image: np.ndarray, quality: int) -> str:
    full_colour = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return _uri("jpeg", image, [cv2.IMWRITE_JPEG_QUALITY, quality, *full_colour])


def _uri(kind: str, image: np.ndarray, options: list[int]) -> str:
    _, code = cv2.imencode(f".{kind}", image, options)
    return f"data:image/{kind};base64," + base64.b64encode(code.tobytes()).decode()

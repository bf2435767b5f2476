"""The pictures of a page, encoded so that all of them together stay within a number of bytes."""

from __future__ import annotations

import base64
from collections.abc import Collection

import cv2
import numpy as np

BUDGET = 10_500_000
"""Bytes of all pictures of a report in base64, which leaves room for the rest of its 15 MB."""
LOSSLESS = 101
"""Value of OpenCV's WebP quality that stands for lossless."""
QUALITIES = (LOSSLESS, 95, 88, 75, 55)
"""Qualities in the order in which they are tried."""


def encode_pictures(pngs: Collection[bytes], budget: int = BUDGET) -> dict[bytes, str] | None:
    """Encode pictures as WebP `data:` URIs: without loss where they fit, else at the best quality at which they do.

    Args:
        pngs: 8-bit PNGs.
        budget: bytes of all URIs together.

    Returns:
        The URI of each PNG; None where they do not fit at the lowest quality.
    """
    images = {png: cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR) for png in dict.fromkeys(pngs)}
    for quality in QUALITIES:
        uris, size = {}, 0
        for png, image in images.items():
            _, code = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, quality])
            uris[png] = "data:image/webp;base64," + base64.b64encode(code.tobytes()).decode()
            size += len(uris[png])
            if size > budget:
                break
        if size <= budget:
            return uris
    return None

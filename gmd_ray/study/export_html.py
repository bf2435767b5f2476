"""A study as one HTML file, which works without a server: pictures within, and answers out as a CSV file."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

from PIL import Image

from gmd_ray.images.files.decode import decode_8bit
from gmd_ray.serving.pages import asset
from gmd_ray.storage import replacing
from gmd_ray.study.folder import Study
from gmd_ray.study.page import PACKAGE, rater_page


def export_html(study: Study, to: str | Path) -> int:
    """Write the page; the pictures in it are lossless WebP, or PNG where that is smaller.

    The page may run its own script and load nothing at all; its Content-Security-Policy says so by hashes.

    Returns:
        the size of the file in bytes.
    """
    script, style = asset(PACKAGE, "study.js"), asset(PACKAGE, "study.css")
    names = [name for pair in study.pairs for name in (pair.left, pair.right)]
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        f"base-uri 'none'; form-action 'none'"
    )
    pictures = {name: _data_uri(study.picture(name)) for name in names}
    embedded = {"pictures": pictures, "style": style, "script": script, "policy": policy}
    page = rater_page(study, study.pairs, embedded=embedded).encode()
    with replacing(Path(to)) as file:
        file.write_bytes(page)
    return len(page)


def _data_uri(png: bytes) -> str:
    buffer = io.BytesIO()
    Image.fromarray(decode_8bit(png)).save(buffer, "WEBP", lossless=True, quality=80, method=4, exact=True)
    smaller = min((buffer.getvalue(), "webp"), (png, "png"), key=lambda each: len(each[0]))
    return f"data:image/{smaller[1]};base64,{base64.b64encode(smaller[0]).decode()}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

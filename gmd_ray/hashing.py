"""Digests of content."""

from __future__ import annotations

import hashlib


def content_digest(data: bytes) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits: what the pair store's column `digest` holds."""
    return hashlib.sha256(data).hexdigest()

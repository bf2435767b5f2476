"""Short digests of weights and settings."""

from __future__ import annotations

import hashlib
from pathlib import Path

_WHOLE = 256 << 20
_SAMPLES, _SAMPLE = 64, 1 << 20


def digest(*parts: str) -> str:
    """16 hex digits."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def weights_digest(path: Path) -> str:
    """Digest of every weight and config file below a model directory, by content and relative name.

    A file above 256 MiB counts by its size and 64 evenly spaced MiB: hashing 24 GB at each actor start would cost more
    than loading it.
    """
    total = hashlib.sha256()
    for file in sorted([*path.rglob("*.safetensors"), *path.rglob("*config.json")]):
        size = file.stat().st_size
        total.update(f"{file.relative_to(path).as_posix()}:{size}:".encode())
        with file.open("rb") as stream:
            if size <= _WHOLE:
                total.update(stream.read())
            else:
                for i in range(_SAMPLES):
                    stream.seek((size - _SAMPLE) * i // (_SAMPLES - 1))
                    total.update(stream.read(_SAMPLE))
    return total.hexdigest()

"""Digests of weights and settings, which tell teachers apart in a store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from gmd_ray.teachers.directory import MODEL_FOLDERS, TEXT_FOLDERS

_WHOLE = 256 << 20
"""Largest file, in bytes, that is hashed completely."""
_SAMPLES, _SAMPLE = 64, 1 << 20
"""Samples of a larger file, and the bytes of each."""


def weights_digest(path: Path) -> str:
    """SHA-256 of all weight and config files of a model directory, by content and relative name.

    Text encoders are left out. The embeddings in use stand for them, and a worker that gets those need not have the
    encoders.
    """
    patterns = ("*.safetensors", "*config.json")
    return _files_digest(path, [f for name in MODEL_FOLDERS for glob in patterns for f in (path / name).rglob(glob)])


def text_revision(path: Path) -> str:
    """16 hex digits of the directory's text encoders and tokenizers, by content and relative name."""
    kinds = (".safetensors", ".json", ".txt", ".model", ".jinja")  # the last for chat templates
    files = [file for name in TEXT_FOLDERS for file in (path / name).rglob("*") if file.suffix in kinds]
    return _files_digest(path, files)[:16]


def _files_digest(path: Path, files: Iterable[Path]) -> str:
    """SHA-256 of names, sizes and contents, 64 hex digits.

    Of a file above 256 MiB, 64 evenly spaced MiB count: hashing 24 GB at each start of an actor would take longer than
    loading them.
    """
    total = hashlib.sha256()
    for file in sorted(files):
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

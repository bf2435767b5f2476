"""Digests, against hashlib."""

from __future__ import annotations

import hashlib
from pathlib import Path

from gmd_ray.hashing import content_digest, path_digest, short_digest


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_digests_are_those_that_stores_and_checkpoints_hold() -> None:
    assert content_digest(b"data") == sha256(b"data")
    assert short_digest("one") == sha256(b"one")[:16]
    assert short_digest("a", "b") == sha256(b"a\x1fb")[:16] != short_digest("ab")


def test_a_directory_counts_by_names_and_content(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"2")
    (tmp_path / "a").write_bytes(b"1")
    assert path_digest(tmp_path / "a") == sha256(b"1")
    assert path_digest(str(tmp_path)) == sha256(f"a {sha256(b'1')}\nsub/b {sha256(b'2')}\n".encode())

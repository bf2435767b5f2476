from __future__ import annotations

from gmd_ray.hashing import content_digest


def test_is_sha_256() -> None:
    # The empty string's digest, as FIPS 180-4 implementations print it.
    assert content_digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

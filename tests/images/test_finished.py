"""The record of finished results, which recognises photos that have changed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from gmd_ray.images.finished import Finished, modified, read_record, write_record
from gmd_ray.images.listing import ImageFile

THEN = datetime(2026, 5, 1, 12, 0, 0, 250, UTC)
PHOTO = ImageFile("a.png", "/photos/a.png", 100, THEN)
ENTRY = Finished("a_r.png", 500, "m 1", "a.png", "d0", 100, modified(PHOTO), 24, 40)


def never() -> str:
    raise AssertionError("the photo need not be read")


def test_the_record_comes_back() -> None:
    entries = [replace(ENTRY, name=name) for name in ("b/ü\n.png", "a.png")]
    assert read_record(write_record(entries)) == {entry.name: entry for entry in entries}
    assert read_record(None) == {}


def test_a_damaged_line_is_as_if_it_were_not_there() -> None:
    data = write_record([ENTRY])
    assert read_record(b'{"name": "x"}\nhello\n[1]\n' + data + data[:20]) == {ENTRY.name: ENTRY}


def test_size_and_time_settle_it() -> None:
    assert ENTRY.of_unchanged(PHOTO, never)
    assert not ENTRY.of_unchanged(replace(PHOTO, size=101), never)
    assert not ENTRY.of_unchanged(replace(PHOTO, id="b.png"), never)


@pytest.mark.parametrize("changes", [{"modified": THEN.replace(microsecond=251)}, {"size": None}, {"modified": None}])
def test_else_the_bytes_do(changes: dict[str, Any]) -> None:
    photo = replace(PHOTO, **changes)
    assert ENTRY.of_unchanged(photo, lambda: "d0")
    assert not ENTRY.of_unchanged(photo, lambda: "d1")

"""Foreign names that would leave the folder they are joined to are refused."""

from __future__ import annotations

import pytest

from gmd_ray.errors import DataError
from gmd_ray.images.safe_paths import safe_relative

HOSTILE = [
    "",
    ".",
    "..",
    "/",
    "/etc/x.png",
    "//host/x.png",
    "../x.png",
    "../../x.png",
    "a/../../x.png",
    "a/..",
    "./a.png",
    "a/./b.png",
    "a//b.png",
    "a/",
    "..\\x.png",
    "a\\..\\..\\x.png",
    "a/..\\..\\x.png",
    "\\x.png",
    "\\\\host\\share\\x.png",
    "C:\\x.png",
    "c:/x.png",
    "a\0.png",
    "\0",
    "\ud800.png",
]
"""Names under which no command may write an image."""


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_leave_their_folder_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="is not a path below its folder") as caught:
        safe_relative(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["a.png", "a/b/c.png", "..a.png", "a..b/c...png", "photo (1).png", "10:30.png", "a\\b.png", "ü/é#%?.png"]
)
def test_names_below_their_folder_stay_as_they_are(name: str) -> None:
    assert safe_relative(name) == name

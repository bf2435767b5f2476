"""Checks of foreign names (ids of a store, keys of a data set) before they become paths of files to write.

Links in an output folder are followed, such as `out/lq -> /big/disk`: only the folder's owner can have made them, as no
command makes links from what it reads.
"""

from __future__ import annotations

import re

from gmd_ray.errors import DataError
from gmd_ray.text import printable

_DRIVE = re.compile(r"[A-Za-z]:[/\\]")


def safe_relative(name: str) -> str:
    """Return `name` unchanged if it stays below any folder that it is joined to.

    Both kinds of slash count as separators, since an output folder may be on a Windows share.

    Raises:
        DataError: the name is empty, absolute or begins with a drive; has a component that is empty, `.` or `..`; or
            cannot be a file name (NUL, or text that UTF-8 cannot encode).
    """
    parts = re.split(r"[/\\]", name)
    if any(part in ("", ".", "..") for part in parts) or _DRIVE.match(name) or "\0" in name or not _encodable(name):
        raise DataError(f"the name '{printable(name)}' is not a path below its folder; rename the image at its source")
    return name


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True

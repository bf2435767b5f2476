"""Names that others chose (ids of a store, keys of a data set), before they become paths of files to write.

A link that already lies in an output folder is followed: only whoever owns the folder can have put it there, as
`out/lq -> /big/disk`, and no verb makes links out of what it reads.
"""

from __future__ import annotations

import re

from gmd_ray.errors import DataError
from gmd_ray.text import printable

_DRIVE = re.compile(r"[A-Za-z]:[/\\]")


def safe_relative(name: str) -> str:
    """`name` itself, once it is certain that it names a file below the folder that it is joined to.

    Both kinds of slash count as separators, since an output folder may lie on a Windows share.

    Raises:
        DataError: for a name that is empty, absolute or begins with a drive, that has an empty part, `.` or `..`, or
            that no file can have (NUL, or text that UTF-8 cannot hold).
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

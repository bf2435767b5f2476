"""Addresses that the processes of a machine listen on, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LISTENING = "0A"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same in IPv6, and ::1, as /proc/net has them."""


def family(pid: int) -> set[int]:
    """A process and all that came of it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):  # it has just ended
                continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening(pid: int) -> Iterator[tuple[str, str, int]]:
    """(command line, address in hexadecimal, port) of each socket on which these processes listen."""
    places = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENING:
                address, port = words[1].split(":")
                places[f"socket:[{words[9]}]"] = address, int(port, 16)
    for member in sorted(family(pid)):
        links = set()
        with suppress(OSError):  # the process ends
            name = Path(f"/proc/{member}/cmdline").read_text().replace("\0", " ")
            for link in list(Path(f"/proc/{member}/fd").iterdir()):
                with suppress(OSError):  # closed by now, as that of this very listing
                    links.add(os.readlink(link))
        for link in links & places.keys():
            yield name, *places[link]

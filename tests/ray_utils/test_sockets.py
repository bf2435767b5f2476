"""Listening sockets are found in any process, that of the caller too."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from tests.ray_utils.sockets import LOOPBACK, listening

CHILD = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    input()
"""


def test_sockets_of_this_process_and_of_its_children_are_found() -> None:
    command = [sys.executable, "-c", CHILD]
    with (
        socket.create_server(("127.0.0.1", 0)) as near,
        socket.create_server(("", 0)) as far,
        socket.create_server(("::", 0), family=socket.AF_INET6) as everywhere,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child,
    ):
        assert child.stdout is not None
        inner = int(child.stdout.readline())
        found = {port: address in LOOPBACK for _, address, port in listening(os.getpid())}
        child.communicate("\n")
        ports = [server.getsockname()[1] for server in (near, far, everywhere)]
    assert [found.get(port) for port in [*ports, inner]] == [True, False, False, True]

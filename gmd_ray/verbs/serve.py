"""The verb `serve`: a run in the browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmd_ray.terminal import Parser

if TYPE_CHECKING:
    from gmd_ray.serving.server import PageServer


def add_address(parser: Parser) -> None:
    """Add --host and --port."""
    text = "address to listen on; default: this machine alone (127.0.0.1)"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    parser.add_argument("--port", type=int, default=8765, help="8765 by default; 0 takes a free one")


def serving(server: PageServer, line: str) -> int:
    """Say where the server is, and answer until Ctrl-C."""
    print(f"{line}\nCtrl-C ends it", flush=True)  # not by `say`, which would hide a token
    try:
        server.serve_forever(poll_interval=0.5)
    finally:
        server.server_close()
    return 0

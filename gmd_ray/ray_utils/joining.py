"""Joining a Ray cluster, after asking it whether it is one and whether it wants a token.

Ray itself finds out by trying for minutes, and prints each try. It does not look for a token if it is given an address.
A driver with a token on a cluster without one is no better off: it joins, and then refuses the cluster's own calls.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
from ray.exceptions import AuthenticationError

from gmd_ray.errors import GmdError
from gmd_ray.ray_utils.ray_internals import can_set_authentication, find_token, reread_environment, resolve_address

AUTH_MODE = "RAY_AUTH_MODE"

ANSWER_S = 10.0
"""Seconds that the head of a cluster may take to answer."""
_QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""The gRPC call with which every process of Ray introduces itself. Its argument is an empty message."""
_FOUND = "RAY_AUTH_MODE=token with RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token as at `ray start --head`"


@contextlib.contextmanager
def door(address: str) -> Iterator[None]:
    """Take on the authentication of the cluster at `address` within the block.

    RAY_AUTH_MODE is set to what this cluster has, unless the user has set it, and removed at the end. Clusters behind
    TLS and addresses with a scheme are left to Ray.

    Raises:
        GmdError: no Ray cluster answers there, or it does not take this driver.
    """
    mode = os.environ.get(AUTH_MODE)
    wanted = _wanted_mode(address, mode)
    if mode is not None or wanted is None or not can_set_authentication():
        yield
        return
    os.environ[AUTH_MODE] = wanted
    reread_environment()
    try:
        yield
    finally:
        os.environ.pop(AUTH_MODE, None)
        reread_environment()


def _wanted_mode(address: str, mode: str | None) -> str | None:
    """Return the RAY_AUTH_MODE that the cluster needs; None if it was not asked."""
    if "://" in address or os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return None
    place = _place(address)
    if place is None:
        return None
    where = f"ray.address={address}" if address != "auto" else f"the Ray cluster at {place}"
    _see_that_something_listens(place, where)
    code = _ask(place)
    if code == grpc.StatusCode.OK:
        if mode is not None and mode.lower() == "token":
            raise GmdError(
                f"{where}: this cluster has no token authentication, and with RAY_AUTH_MODE=token this process would "
                "refuse its calls: unset RAY_AUTH_MODE"
            )
        return "disabled"
    if code != grpc.StatusCode.UNAUTHENTICATED:
        import ray

        raise GmdError(
            f"{where}: something listens there that does not answer as the head of a Ray cluster does "
            f"({code.name}; Ray {ray.__version__} here); give the host and the --port of `ray start --head`, 6379 "
            "unless set"
        )
    if mode is not None and mode.lower() != "token":
        raise GmdError(f"{where}: this cluster wants a token, and RAY_AUTH_MODE={mode} sends none: unset it")
    if not can_set_authentication():
        return None
    try:
        token = find_token()
    except AuthenticationError as error:  # RAY_AUTH_TOKEN_PATH is no file, or an empty one
        raise GmdError(f"{where}: this cluster wants a token; {str(error).split('. ')[0]}") from error
    if token is None:
        raise GmdError(f"{where}: this cluster wants a token, and there is none: {_FOUND}")
    if _ask(place, [("authorization", f"Bearer {token}")]) != grpc.StatusCode.OK:
        raise GmdError(f"{where}: this cluster does not take the token of {_token_source()}: {_FOUND}")
    return "token"


def _place(address: str) -> str | None:
    """Return host:port of an address; None if "auto" finds nothing."""
    try:
        return resolve_address(address)
    except (ValueError, ConnectionError, OSError) as error:
        raise GmdError(f"ray.address={address}: {error}; give auto or host:port") from error


def _see_that_something_listens(place: str, where: str) -> None:
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError, ValueError) as error:
        raise GmdError(
            f"{where}: no Ray cluster answers at {place} ({error}); is it up, and is that the --port of "
            "`ray start --head`?"
        ) from error


def _ask(place: str, metadata: Sequence[tuple[str, str]] = ()) -> grpc.StatusCode:
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        question = channel.unary_unary(_QUESTION)  # bytes in, bytes out
        try:
            question(b"", timeout=ANSWER_S, metadata=list(metadata))
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def _token_source() -> str:
    """Return where Ray takes its token from. It looks at two variables and then into the home directory."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    return os.environ.get("RAY_AUTH_TOKEN_PATH") or str(Path("~") / ".ray" / "auth_token")

"""Joining a Ray cluster: it is asked first whether it is one, and whether it wants a token.

Ray finds out by trying, for minutes, and prints each try. Nor does it look for a token where it is given an address.
A driver that has one on a cluster without is no better off: it joins, and then refuses the cluster's own calls.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
from ray._private.authentication.authentication_token_setup import AUTH_MODE_ENV_VAR
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray._raylet import Config as RayCore  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError

from gmd_ray.errors import GmdError

ANSWER_S = 10.0
"""How long a cluster's head may take to answer."""
_QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""The call with which every process of Ray's introduces itself; its argument is an empty message."""
_FOUND = "RAY_AUTH_MODE=token with RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token as at `ray start --head`"


@contextlib.contextmanager
def door(address: str) -> Iterator[None]:
    """Take on the authentication of the cluster at `address`, for the length of the block.

    RAY_AUTH_MODE is set where the user has not, to what this cluster has, and taken back at the end. Clusters behind
    TLS and addresses with a scheme are left to Ray.

    Raises:
        GmdError: no cluster of Ray's answers there, or it does not take this driver.
    """
    mode = os.environ.get(AUTH_MODE_ENV_VAR)
    wanted = _wanted_mode(address, mode)
    if mode is not None or wanted is None:
        yield
        return
    os.environ[AUTH_MODE_ENV_VAR] = wanted
    RayCore.initialize("")  # Ray's core reads its environment once
    try:
        yield
    finally:
        os.environ.pop(AUTH_MODE_ENV_VAR, None)
        RayCore.initialize("")


def _wanted_mode(address: str, mode: str | None) -> str | None:
    """RAY_AUTH_MODE of the cluster; None where it was not asked."""
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
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        token = loader.get_raw_token(ignore_auth_mode=True) if loader.has_token(ignore_auth_mode=True) else None
    except AuthenticationError as error:  # RAY_AUTH_TOKEN_PATH is no file, or an empty one
        raise GmdError(f"{where}: this cluster wants a token; {str(error).split('. ')[0]}") from error
    if token is None:
        raise GmdError(f"{where}: this cluster wants a token, and there is none: {_FOUND}")
    if _ask(place, [("authorization", f"Bearer {token}")]) != grpc.StatusCode.OK:
        raise GmdError(f"{where}: this cluster does not take the token of {_token_source()}: {_FOUND}")
    return "token"


def _place(address: str) -> str | None:
    """host:port; None where "auto" finds nothing."""
    try:
        return canonicalize_bootstrap_address(address)
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
    """Where Ray takes its token from, in its order."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    return os.environ.get("RAY_AUTH_TOKEN_PATH") or str(Path("~") / ".ray" / "auth_token")
